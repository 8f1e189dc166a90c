"""Tversky loss: Dice with a price of its own for each kind of mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from peftkit.losses import losses
from peftkit.losses.overlap import Overlap

if TYPE_CHECKING:
    from torch import Tensor


@losses.register("tversky")
class Tversky(Overlap):
    """1 - (p y + s) / (p y + a p (1 - y) + b (1 - p) y + s): for imbalanced classes where one mistake is worse.

    Salehi et al. 2017, arXiv:1706.05721, row by row as in Li et al. 2020, arXiv:1911.02855. p is the softmax over
    classes or, for several labels per row, each label's sigmoid; y is 1 where the label applies.
    """

    false_positives: float = Field(0.5, ge=0.0)
    """a: price of a probability where the label does not apply."""
    false_negatives: float = Field(0.5, ge=0.0)
    """b: price of what is missing where the label applies."""

    def overlap(self, p: Tensor, y: Tensor) -> Tensor:
        """See `Overlap.overlap`."""
        hit = p * y + self.smoothing
        return hit / (hit + self.false_positives * p * (1 - y) + self.false_negatives * (1 - p) * y)
