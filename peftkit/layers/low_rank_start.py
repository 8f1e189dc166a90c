"""Where the two matrices of LoRA start when they do not start at zero, and a layer that takes the start away again.

The papers cut the start out of the frozen weight: W - s B0 A0. Here the weight stays as it is, and a frozen copy of the
start is subtracted beside it, W x + s (B A - B0 A0) x, which is the same function of the trained A and B. When training
has ended, the two become one plain LoRA of twice the rank, so that the saved adapter fits the untouched base model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Matrices = tuple[Tensor, Tensor]
_WORST_INVERSE = 0.05
"""How far the inverse of a matrix times the matrix may be from the identity, as in CorDA's own code."""


def principal_part(weight: Tensor, rank: int, scaling: float) -> Matrices:
    """A (rank, inputs) and B (outputs, rank) so that scaling B A is the best approximation of `weight`.

    PiSSA: Meng et al. 2024, arXiv:2404.02948, section 3.
    """
    left, values, right = torch.linalg.svd(weight / scaling, full_matrices=False)
    root = values[:rank].sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def orthonormal_part(weight: Tensor, rank: int, scaling: float) -> Matrices:
    """The first rows of R and columns of Q of the weight's QR decomposition.

    OLoRA: Büyükakyüz 2024, arXiv:2406.01775, section 3.
    """
    q, r = torch.linalg.qr(weight)
    return r[:rank].contiguous(), q[:, :rank].contiguous()


def data_part(weight: Tensor, rank: int, scaling: float, *, second_moment: Tensor) -> Matrices:
    """The part of `weight` that acts most on inputs like those seen: from the decomposition of W C, times inverse C.

    CorDA in its instruction-previewed mode: Yang et al. 2024, arXiv:2406.05223, section 3.2.

    Args:
        second_moment: C, (inputs, inputs), the mean of x x'.
    """
    identity = torch.eye(len(second_moment), device=weight.device)
    damping = 0.01
    while True:
        damped = second_moment + damping * second_moment.diagonal().mean() * identity
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, identity) < _WORST_INVERSE:
            break
        damping *= 2
    left, values, right = torch.linalg.svd(weight @ damped / scaling, full_matrices=False)
    root = values[:rank].sqrt()
    return root[:, None] * (right[:rank] @ inverse), left[:, :rank] * root


class FromStart(nn.Module):
    """A linear map whose first half trains, from a start that its frozen second half holds.

    Args:
        start: where the trained half begins; any float type, kept in float32.
        sign: of the frozen half.
        dim: along which the halves are put together: 0 for A, 1 for B.
    """

    start: Tensor

    def __init__(self, start: Tensor, *, sign: int, dim: int) -> None:
        super().__init__()
        start = start.detach().float()
        self.trained = nn.Parameter(start.clone())
        self.register_buffer("start", sign * start)
        self.dim = dim
        self.bias = None

    @property
    def weight(self) -> Tensor:
        """Both halves."""
        return torch.cat([self.trained, self.start], dim=self.dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return nn.functional.linear(x, self.weight)


def oriented(layer: Any, weight: Tensor) -> Tensor:
    """`weight` of a linear layer as (outputs, inputs), whichever way the layer stores it."""
    return weight.T if isinstance(layer, Conv1D) else weight


def updated_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Layers that LoRA updates in a `PeftModel`, by their names in the base model."""
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and model.active_adapter in layer.lora_A:
            yield name, layer


def begin_from(layer: Any, adapter: str, matrices: Matrices) -> None:
    """Let the LoRA of one of peft's layers train from A and B, without changing what the layer computes."""
    a, b = matrices
    layer.lora_A[adapter] = FromStart(a, sign=1, dim=0)
    layer.lora_B[adapter] = FromStart(b, sign=-1, dim=1)


def set_matrices(layer: Any, adapter: str, matrices: Matrices) -> None:
    """Put values into the LoRA of one of peft's layers, and into DoRA's magnitude the norm that they lead to."""
    a, b = matrices
    layer.lora_A[adapter].weight.data = a.contiguous()
    layer.lora_B[adapter].weight.data = b.contiguous()
    if layer.use_dora[adapter]:
        layer.lora_magnitude_vector[adapter].update_layer(
            base_layer=layer.get_base_layer(), lora_A=a, lora_B=b, scaling=layer.scaling[adapter]
        )


def settle(model: Any) -> None:
    """Make every LoRA that began from a start a plain one of twice the rank, in place; outputs stay bit-equal."""
    adapter = model.active_adapter
    config = model.peft_config[adapter]
    layers = {name: layer for name, layer in updated_layers(model) if isinstance(layer.lora_A[adapter], FromStart)}
    if not layers:
        return
    config.r, config.use_rslora = 2 * config.r, False
    config.rank_pattern, config.alpha_pattern = {}, {}
    for name, layer in layers.items():
        rank = 2 * layer.r[adapter]
        alpha = layer.scaling[adapter] * rank
        layer.r[adapter], layer.lora_alpha[adapter], layer.scaling[adapter] = rank, alpha, alpha / rank
        layer.use_rslora[adapter] = False
        for matrices in (layer.lora_A, layer.lora_B):
            matrices[adapter] = _plain(matrices[adapter])
        if rank != config.r:
            config.rank_pattern[name] = rank
        config.alpha_pattern[name] = alpha
    alphas = set(config.alpha_pattern.values())
    if len(alphas) == 1:
        config.lora_alpha, config.alpha_pattern = alphas.pop(), {}


def _plain(matrix: FromStart) -> nn.Linear:
    weight = matrix.weight.detach()
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=matrix.trained.requires_grad)
    return linear
