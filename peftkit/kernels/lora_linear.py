"""A linear layer with a low-rank update, as one operation.

    y  = x W' + b + s (z A') B'          z is x, or x after the adapter's own dropout
    dx = g W                             dz = s (g B) A
    dA = s (g B)' z                      dB = s ((z A')' g)'

Each of y, dx and dz is written once: the update is added by the matrix product itself. Only z and z A' (tokens,
rank) are kept for the backward pass. The product for dB is transposed, which is many times faster for few rows than
g' (z A').
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.library import custom_op, register_autograd, register_fake


@custom_op("peftkit::lora_linear", mutates_args=())
def lora_linear(  # noqa: PLR0913 # what a product and its update are made of
    x: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """(tokens, out) y and (tokens, rank) z A' of x (tokens, in), weight (out, in), a (rank, in), b (out, rank).

    Args:
        z: (tokens, in), or None for x.
    """
    low = (x if z is None else z) @ a.T
    y = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
    return y.addmm_(low, b.T, alpha=scale), low


def _shapes(  # noqa: PLR0913 # those of the operation
    x: Tensor, z: Tensor | None, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], a.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, z, weight, _, a, b, ctx.scale = inputs
    ctx.own_input = z is not None
    ctx.save_for_backward(x if z is None else z, weight, a, b, output[1])


def _backward(ctx: Any, g: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    read, weight, a, b, low = ctx.saved_tensors
    reads_x, reads_z, _, _, trains_a, trains_b, _ = ctx.needs_input_grad
    below = ctx.scale * (g @ b)
    dx = g @ weight if reads_x else None
    if dx is not None and not ctx.own_input:
        dx = dx.addmm_(below, a)
    dz = below @ a if ctx.own_input and reads_z else None
    da = below.T @ read if trains_a else None
    db = (ctx.scale * (low.T @ g)).T if trains_b else None
    return dx, dz, None, None, da, db, None


OPERATION = torch.ops.peftkit.lora_linear.default
"""As torch's dispatcher knows it."""
register_fake("peftkit::lora_linear")(_shapes)
register_autograd("peftkit::lora_linear", _backward, setup_context=_keep)


class FusedLoraLinear(PeftLinear):
    """peft's LoRA layer, computed as one operation where nothing forbids it; its weights and their names are peft's."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """See `peft.tuners.lora.Linear.forward`."""
        name = self.active_adapters[0] if self.active_adapters else None
        is_plain = not (args or kwargs) and self._is_plain(name, x) and not torch.is_autocast_enabled(x.device.type)
        if not is_plain:
            outcome: Tensor = super().forward(x, *args, **kwargs)
            return outcome
        base: Any = self.get_base_layer()
        dropout = self.lora_dropout[name]
        flat = x.reshape(-1, x.shape[-1])
        read = None if isinstance(dropout, nn.Identity) or not self.training else dropout(flat)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        y: Tensor
        y, _ = lora_linear(flat, read, base.weight, base.bias, a, b, float(self.scaling[name]))
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def _is_plain(self, name: str | None, x: Tensor) -> bool:
        if name not in self.lora_A or len(self.active_adapters) != 1 or self.disable_adapters or self.merged:
            return False
        base: Any = self.get_base_layer()
        down, up = self.lora_A[name], self.lora_B[name]
        is_watched = any(map(_is_watched, (base, down, up, self.lora_dropout[name])))
        return not self.lora_variant and not is_watched and x.dtype == base.weight.dtype == down.weight.dtype


def fuse_lora(model: nn.Module) -> int:
    """Let every LoRA layer of `model` be computed as one operation; their number."""
    layers = [layer for layer in model.modules() if type(layer) is PeftLinear and _is_fusible(layer)]
    for layer in layers:
        layer.__class__ = FusedLoraLinear
    return len(layers)


def unfuse_lora(model: nn.Module) -> None:
    """Give every LoRA layer its class in peft back."""
    for layer in model.modules():
        if type(layer) is FusedLoraLinear:
            layer.__class__ = PeftLinear


def _is_watched(layer: nn.Module) -> bool:
    """Whether somebody wants to see what goes in or out."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)


def _is_fusible(layer: PeftLinear) -> bool:
    base: Any = layer.get_base_layer()
    return (
        type(base) is nn.Linear
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and not any(layer.lora_bias.values())
    )
