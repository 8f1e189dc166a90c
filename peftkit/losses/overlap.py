"""What Dice and Tversky losses share: overlap of what is predicted and what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from peftkit.labels import IGNORED
from peftkit.losses.class_weights import WeightedLoss

if TYPE_CHECKING:
    from torch import Tensor


class Overlap(WeightedLoss):
    """1 - overlap, averaged over the classes of each row."""

    smoothing: float = Field(1.0, gt=0.0)
    """Added to both sides of the ratio: keeps it defined, and a gradient where the label does not apply."""

    def overlap(self, p: Tensor, y: Tensor) -> Tensor:
        """1 where probability and label agree, less where they do not.

        Args:
            p: (positions, classes) probabilities.
            y: (positions, classes), 1 where the label applies, else 0.
        """
        raise NotImplementedError

    def compute(self, logits: Tensor, labels: Tensor, num_items: int | Tensor | None) -> Tensor:
        """Sum over labelled positions, or over (rows, labels) flags, divided by `num_items`; see `Loss.compute`."""
        from torch.nn.functional import one_hot

        weights = self.weights(logits)
        factor = 1.0 if weights is None else weights
        if labels.is_floating_point():
            lost = factor * (1 - self.overlap(logits.float().sigmoid(), labels.float()))
            return lost.sum() / (labels.numel() if num_items is None else num_items)
        there = labels != IGNORED
        p = logits.float()[there].softmax(-1)
        lost = factor * (1 - self.overlap(p, one_hot(labels[there], p.shape[-1]).float()))
        return lost.mean(-1).sum() / (there.sum().clamp(min=1) if num_items is None else num_items)
