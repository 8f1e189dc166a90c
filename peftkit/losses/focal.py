"""Focal loss: rows that are easy by now count less."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from peftkit.labels import IGNORED
from peftkit.losses import losses
from peftkit.losses.class_weights import WeightedLoss

if TYPE_CHECKING:
    from torch import Tensor


@losses.register("focal")
class Focal(WeightedLoss):
    """-(1 - p)^gamma log p, p the probability of the right answer: for classes of very different frequency.

    Lin et al. 2017, arXiv:1708.02002, equation 5; their alpha is `class_weights`. For several labels per row, every
    label is a yes or no of its own, and the weights are those of a yes.
    """

    gamma: float = Field(2.0, ge=0.0)
    """How much less easy rows count; 0 is cross-entropy."""

    def compute(self, logits: Tensor, labels: Tensor, num_items: int | Tensor | None) -> Tensor:
        """Sum over labelled positions, or over (rows, labels) flags, divided by `num_items`; see `Loss.compute`."""
        import torch
        from torch.nn.functional import logsigmoid

        weights = self.weights(logits)
        if labels.is_floating_point():
            lost = self._lost(torch.where(labels > 0.5, logsigmoid(logits.float()), logsigmoid(-logits.float())))
            factor = 1.0 if weights is None else torch.where(labels > 0.5, weights, 1.0)
            return (factor * lost).sum() / (labels.numel() if num_items is None else num_items)
        there = labels != IGNORED
        rows, classes = logits.float()[there], labels[there]
        lost = self._lost(rows.log_softmax(-1).gather(-1, classes[:, None])[:, 0])
        factor = 1.0 if weights is None else weights[classes]
        return (factor * lost).sum() / (there.sum().clamp(min=1) if num_items is None else num_items)

    def _lost(self, log_p: Tensor) -> Tensor:
        """Loss of each answer, from the logarithm of the probability of what is right."""
        import torch

        # without cancellation, and never quite 0, where a power below 1 has no gradient
        wrong = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
        return -(wrong**self.gamma) * log_p
