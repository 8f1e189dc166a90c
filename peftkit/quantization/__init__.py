"""Quantization: how the frozen weights of the base model are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.registry import Component, Registry

if TYPE_CHECKING:
    import torch
    from torch import nn


class Quantizer(Component):
    """How the frozen linear weights of the base model are stored. Heads, norms and embeddings stay as they are."""

    bits: ClassVar[int]
    """Bits per stored weight."""
    paper: ClassVar[str] = ""

    def config(self, *, compute_dtype: torch.dtype, keep: Sequence[str]) -> Any:
        """What transformers' `quantization_config` takes.

        Args:
            compute_dtype: type that weights are multiplied in, after they have been dequantized.
            keep: names of the modules that are not quantized.
        """
        raise NotImplementedError

    def settle(self, model: nn.Module) -> None:
        """Bring a loaded model into the state that training needs."""

    def problem(self, device: str) -> str | None:
        """Why this machine cannot run it on `device` (cuda, mps, cpu), with what to do; None if it can."""
        return None


quantizers: Registry[Quantizer] = Registry("peftkit.quantization", "quantizer")
