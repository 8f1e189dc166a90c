"""Features of unequal length as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor


def padded(
    features: Sequence[Mapping[str, Any]], fill: Mapping[str, int], *, side: Literal["right", "left"] = "right"
) -> dict[str, Tensor]:
    """One tensor for every column of the features.

    Args:
        features: alike in their columns; a cell is a number, or a list of whole numbers.
        fill: what the lists of a column are filled up with; columns that are absent here hold numbers.
        side: where lists are filled up.

    Returns:
        (rows,) for numbers, (rows, longest) for lists.
    """
    import torch

    batch = {}
    for name in features[0]:
        cells = [feature[name] for feature in features]
        if name in fill:
            width = max(map(len, cells))
            gaps = [[fill[name]] * (width - len(cell)) for cell in cells]
            cells = [[*cell, *gap] if side == "right" else [*gap, *cell] for cell, gap in zip(cells, gaps, strict=True)]
        batch[name] = torch.tensor(cells)
    return batch
