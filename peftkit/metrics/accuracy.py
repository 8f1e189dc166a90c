"""Accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.metrics import Metric, Rows, metrics
from peftkit.metrics.rows import class_rows

if TYPE_CHECKING:
    import numpy as np


@metrics.register("accuracy")
class Accuracy(Metric):
    """Share of rows that are right. Of several labels per row, every one must be right (exact match)."""

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`."""
        from sklearn.metrics import accuracy_score

        predicted, actual = class_rows(predictions, references, metric=self.name)
        return {self.score_name: float(accuracy_score(actual, predicted))}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        right = (predictions == references).reshape(len(references), -1).all(axis=1)
        return {self.score_name: counts @ right / counts.sum(axis=1)}
