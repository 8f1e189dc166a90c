"""Metrics: pure functions of predictions and references, computed by scikit-learn and scipy, without a network.

Every metric is also an `evaluate.Metric` (`Metric.module`), so it combines with those of the evaluate library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from peftkit.registry import Component, Registry


class Metric(Component):
    """A named score of predictions against references."""

    greater_is_better: ClassVar[bool] = True
    """Whether training keeps the checkpoint with the highest value."""

    def compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        """Scores by name; the first entry has the metric's own name and is the one that selects checkpoints.

        Args:
            predictions: (rows,) class indices or real values; (rows, labels) 0/1 for multi-label.
            references: the same shape as `predictions`.
        """
        raise NotImplementedError


metrics: Registry[Metric] = Registry("peftkit.metrics", "metric")
