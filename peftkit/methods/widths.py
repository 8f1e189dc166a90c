"""Sizes that fit the widths of a model."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import TYPE_CHECKING

from peftkit.errors import CapabilityError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def widths(model: PreTrainedModel, layers: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of linear layers, by their names."""
    from transformers.pytorch_utils import Conv1D

    found = {}
    for name in layers:
        layer = model.get_submodule(name)
        found[name] = (layer.nx, layer.nf) if isinstance(layer, Conv1D) else (layer.in_features, layer.out_features)
    return found


def fitting_block(asked: int | None, sizes: dict[str, tuple[int, int]], *, at_most: int) -> int:
    """A block size that divides the inputs of all layers: the one asked for, or the largest up to `at_most`.

    Raises:
        CapabilityError: the one asked for does not, or none does.
    """
    if asked is not None:
        for name, (inputs, _) in sizes.items():
            if inputs % asked:
                raise CapabilityError(
                    f"method.block_size {asked} does not divide the {inputs} inputs of {name}; "
                    "choose one that does, or leave it out"
                )
        return asked
    common = gcd(*(inputs for inputs, _ in sizes.values()))
    found = max(size for size in range(1, at_most + 1) if common % size == 0)
    if found == 1:
        counts = ", ".join(str(inputs) for inputs in sorted({inputs for inputs, _ in sizes.values()}))
        raise CapabilityError(
            f"no block size from 2 to {at_most} divides the inputs of all layers ({counts}); "
            "choose method.target_modules of one width, or another method"
        )
    return found
