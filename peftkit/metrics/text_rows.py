"""Generated texts beside the texts that are right: what every metric of texts does before it computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from peftkit.errors import DataError
from peftkit.metrics import Metric, Rows

if TYPE_CHECKING:
    import numpy as np


def text_rows(predictions: Rows, references: Rows, *, metric: str) -> tuple[list[str], list[list[str]]]:
    """Predictions, and the lists of right texts.

    Raises:
        DataError: other rows than that, or none.
    """
    predicted = list(predictions)
    actual = [[cell] if isinstance(cell, str) else list(cell) if _is_list(cell) else cell for cell in references]
    if len(predicted) != len(actual):
        raise DataError(f"the metric {metric!r} got {len(predicted)} predictions for {len(actual)} references")
    if not actual:
        raise DataError(f"the metric {metric!r} got no rows; a split that is scored needs at least one")
    for row, (text, texts) in enumerate(zip(predicted, actual, strict=True)):
        if not isinstance(text, str) or not _is_list(texts) or not texts or not all(isinstance(t, str) for t in texts):
            raise DataError(
                f"the metric {metric!r} compares texts, but row {row} has the prediction {text!r} for {texts!r}; "
                "choose another metric"
            )
    return predicted, actual


class TextMetric(Metric):
    """A metric of texts."""

    def check(self, references: Rows) -> None:
        """See `Metric.check`: the first right text of each row counts as prediction."""
        self.compute([next(iter(cell), None) if _is_list(cell) else cell for cell in references], references)


class MeanTextMetric(TextMetric):
    """A metric of texts that is the mean of values of the rows."""

    def values(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """(rows, scores)."""
        raise NotImplementedError

    def names(self) -> tuple[str, ...]:
        """Names of the scores."""
        return (self.score_name,)

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`."""
        means = self.values(*text_rows(predictions, references, metric=self.name)).mean(axis=0)
        return {name: float(mean) for name, mean in zip(self.names(), means, strict=True)}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        values = self.values(*text_rows(predictions, references, metric=self.name))
        means = counts @ values / counts.sum(axis=1, keepdims=True)
        return {name: means[:, place] for place, name in enumerate(self.names())}


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1)
