"""Sizes that fit the widths of a model."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING

from peftkit.methods import TuningContext
from peftkit.methods.targets import linear_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def widths(model: PreTrainedModel, context: TuningContext) -> list[tuple[int, int]]:
    """Inputs and outputs of the linear layers outside the head."""
    layers = [model.get_submodule(name) for name in linear_layers(model) if not _in_head(name, context)]
    return [(layer.in_features, layer.out_features) for layer in layers if hasattr(layer, "in_features")]


def _in_head(name: str, context: TuningContext) -> bool:
    return any(name == head or name.startswith(f"{head}.") for head in context.head_modules)


def dividing_block(model: PreTrainedModel, context: TuningContext, *, at_most: int) -> int:
    """The largest block size up to `at_most` that divides all inputs and outputs."""
    common = gcd(*(width for pair in widths(model, context) for width in pair))
    return max(size for size in range(1, at_most + 1) if common % size == 0)
