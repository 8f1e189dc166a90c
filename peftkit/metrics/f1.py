"""F1, averaged over classes or labels in four ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from peftkit.errors import DataError
from peftkit.metrics import Metric, Rows, metrics
from peftkit.metrics.rows import class_rows

if TYPE_CHECKING:
    import numpy as np

Average = Literal["binary", "macro", "micro", "weighted"]


@metrics.register("f1")
class F1(Metric):
    """Harmonic mean of precision and recall. The score is called f1, or f1_macro, f1_micro, f1_weighted."""

    average: Average = "binary"
    """binary: of class 1, of two; macro: mean over classes, each counting alike; micro: over all decisions together;
    weighted: mean over classes by their rows."""

    @property
    def score_name(self) -> str:
        """f1 for two classes, otherwise with the kind of average."""
        return "f1" if self.average == "binary" else f"f1_{self.average}"

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`. Without any row of a class, predicted or actual, its F1 is 0."""
        return {self.score_name: _f1(predictions, references, self.average)}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        return {self.score_name: _resampled_f1(predictions, references, counts, self.average)}


@metrics.register("f1_macro")
class F1Macro(Metric):
    """Mean of the F1 of every class, each class counting alike; short for {name: f1, average: macro}."""

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`. Without any row of a class, predicted or actual, its F1 is 0."""
        return {self.score_name: _f1(predictions, references, "macro")}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        return {self.score_name: _resampled_f1(predictions, references, counts, "macro")}


@metrics.register("f1_micro")
class F1Micro(Metric):
    """F1 over all decisions together (one label per row: equals accuracy); short for {name: f1, average: micro}."""

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`."""
        return {self.score_name: _f1(predictions, references, "micro")}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        return {self.score_name: _resampled_f1(predictions, references, counts, "micro")}


def _f1(predictions: Rows, references: Rows, average: Average) -> float:
    from sklearn.metrics import f1_score

    predicted, actual = class_rows(predictions, references, metric="f1")
    if average == "binary" and (actual.ndim == 2 or max(predicted.max(), actual.max()) > 1):
        found = (
            f"{actual.shape[1]} labels per row" if actual.ndim == 2 else f"class {max(predicted.max(), actual.max())}"
        )
        raise DataError(
            f"the metric 'f1' is of class 1 out of two (average: binary), but there is {found}; "
            "use f1_macro or f1_micro, or set its  average"
        )
    return float(f1_score(actual, predicted, average=average, zero_division=0.0))


def _resampled_f1(predictions: np.ndarray, references: np.ndarray, counts: np.ndarray, average: Average) -> np.ndarray:
    """(resamples,) F1, as scikit-learn averages it: macro leaves out classes that a resample does not hold at all."""
    import numpy as np

    if references.ndim == 2:
        predicted, actual = predictions.astype(float), references.astype(float)
    else:
        classes = np.array([1]) if average == "binary" else np.union1d(predictions, references)
        predicted = (predictions[:, None] == classes).astype(float)
        actual = (references[:, None] == classes).astype(float)
    hits, support = counts @ (predicted * actual), counts @ actual
    both = counts @ predicted + support
    if average == "micro":
        hits, both = hits.sum(axis=1, keepdims=True), both.sum(axis=1, keepdims=True)
    scores: np.ndarray = 2 * hits / np.where(both > 0, both, 1)
    if average == "weighted":
        weights = support
    elif average == "macro" and references.ndim == 1:
        weights = (both > 0).astype(float)
    else:
        weights = np.ones_like(scores)
    total = weights.sum(axis=1)
    averaged: np.ndarray = (scores * weights).sum(axis=1) / np.where(total > 0, total, 1)
    return averaged
