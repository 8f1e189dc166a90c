"""Blocks that keep the results of matrix products and of attention only, and compute all else again when it is needed.

Norms, activations, rotations and sums take little time and most of the memory, because each keeps tensors of its own.
Which results are kept is decided by operation, as Korthikanti et al. 2022, arXiv:2205.05198, section 4.1, do by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from peftkit.kernels.forwards import ReplacedForward
from peftkit.kernels.lora_linear import OPERATION
from peftkit.kernels.packing import current

_ATEN = torch.ops.aten
KEPT = frozenset(
    {
        OPERATION,
        _ATEN.mm.default,
        _ATEN.addmm.default,
        _ATEN.bmm.default,
        _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        _ATEN._scaled_dot_product_flash_attention.default,
        _ATEN._scaled_dot_product_efficient_attention.default,
        _ATEN._scaled_dot_product_cudnn_attention.default,
    }
)
"""Operations whose results are kept."""


def pays_back(blocks: Iterable[nn.Module]) -> bool:
    """Whether blocks hold norms that are written out in single operations, each of which keeps tensors.

    The norms that torch has keep their input alone; blocks with them need about what the products of a block need.
    """
    return any(_is_written_out_norm(part) for block in blocks for part in block.modules())


def _is_written_out_norm(part: nn.Module) -> bool:
    own = dict(part.named_parameters(recurse=False))
    is_norm = list(own) == ["weight"] and own["weight"].ndim == 1 and not any(True for _ in part.children())
    return is_norm and not type(part).__module__.startswith("torch.nn")


class Recomputation:
    """Recomputation in blocks of a model, until `remove`; meanwhile the model fills no cache unless it is asked to."""

    def __init__(self, model: nn.Module, blocks: Iterable[nn.Module]) -> None:
        self.replaced = [ReplacedForward(block, _forward) for block in blocks]
        configs: dict[int, Any] = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
        # What a block puts into a cache it would put there a second time.
        self.caching = [config for config in configs.values() if getattr(config, "use_cache", False)]
        for config in self.caching:
            config.use_cache = False

    def remove(self) -> None:
        """Let the blocks keep everything again."""
        for replaced in self.replaced:
            replaced.remove()
        for config in self.caching:
            config.use_cache = True


def _forward(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    packing = current.get()

    def compute(*args: Any, **kwargs: Any) -> Any:
        started = current.set(packing)  # the second time its batch is over
        try:
            return forward(*args, **kwargs)
        finally:
            current.reset(started)

    chosen = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(compute, *args, use_reentrant=False, context_fn=chosen, **kwargs)


def _policy(ctx: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
