"""Squared earth mover's distance, for classes that have an order."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from peftkit.labels import IGNORED, Targets
from peftkit.losses import losses
from peftkit.losses.class_weights import WeightedLoss

if TYPE_CHECKING:
    from torch import Tensor


@losses.register("earth_mover")
class EarthMover(WeightedLoss):
    """sum_k (P(k) - Y(k))^2 over cumulative probabilities: a guess far from the right class costs more than a near one.

    Hou, Yu & Samaras 2016, arXiv:1611.05916: for ordered classes, such as one to five stars, in the order of
    task.labels.
    """

    targets: ClassVar[frozenset[Targets]] = frozenset({"classes"})

    def compute(self, logits: Tensor, labels: Tensor, num_items: int | Tensor | None) -> Tensor:
        """Sum over labelled positions, divided by `num_items`; see `Loss.compute`."""
        from torch.nn.functional import one_hot

        there = labels != IGNORED
        p = logits.float()[there].softmax(-1)
        apart = (p - one_hot(labels[there], p.shape[-1])).cumsum(-1)
        lost = apart.square().sum(-1)
        weights = self.weights(logits)
        lost = lost if weights is None else lost * weights[labels[there]]
        return lost.sum() / (there.sum().clamp(min=1) if num_items is None else num_items)
