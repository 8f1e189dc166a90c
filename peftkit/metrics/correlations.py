"""Pearson's and Spearman's correlation of real values.

A correlation with a constant is undefined (0/0). It counts as 0.0 here: a model that answers the same for every row has
shown no association, and NaN could never lose against a later checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.metrics import Metric, Rows, metrics
from peftkit.metrics.rows import value_rows

if TYPE_CHECKING:
    import numpy as np

_ROUNDING = 1e-12
"""Relative spread below which values are constant but for rounding errors."""


@metrics.register("pearson")
class Pearson(Metric):
    """Linear correlation, -1 to 1; 0 where predictions or references are all the same."""

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`."""
        from scipy.stats import pearsonr

        predicted, actual = value_rows(predictions, references, metric=self.name)
        if _is_constant(predicted) or _is_constant(actual):
            return {self.score_name: 0.0}
        return {self.score_name: float(pearsonr(predicted, actual).statistic)}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        return {self.score_name: _correlations(_scaled(predictions), _scaled(references), counts)}


@metrics.register("spearman")
class Spearman(Metric):
    """Correlation of ranks, -1 to 1, equal values sharing their mean rank; 0 where all values are the same."""

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`."""
        import numpy as np
        from scipy.stats import spearmanr

        predicted, actual = value_rows(predictions, references, metric=self.name)
        if np.ptp(predicted) == 0 or np.ptp(actual) == 0:
            return {self.score_name: 0.0}
        return {self.score_name: float(spearmanr(predicted, actual).statistic)}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        return {self.score_name: _correlations(_ranks(predictions, counts), _ranks(references, counts), counts)}


def _is_constant(values: np.ndarray) -> bool:
    import numpy as np

    return bool(np.ptp(values) <= _ROUNDING * np.abs(values).max())


def _scaled(values: np.ndarray) -> np.ndarray:
    """(1, rows) in [-1, 1] around their mean: squares neither overflow nor cancel."""
    import numpy as np

    scaled: np.ndarray = values.astype(np.float64) - np.mean(values, dtype=np.float64)
    return (scaled / max(float(np.abs(scaled).max()), np.finfo(np.float64).tiny))[None, :]


def _ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(resamples, rows) ranks within each resample, equal values sharing their mean rank, centred on zero."""
    import numpy as np

    order = np.argsort(values, kind="stable")
    _, starts, group = np.unique(values[order], return_index=True, return_inverse=True)
    held = np.add.reduceat(counts[:, order], starts, axis=1)
    ranks = np.cumsum(held, axis=1) - held / 2
    centred = ranks - counts.sum(axis=1, keepdims=True) / 2
    ranked: np.ndarray = centred[:, group[np.argsort(order)]]
    return ranked


def _correlations(first: np.ndarray, second: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(resamples,) correlation of `first` and `second`, (1 or resamples, rows), each row `counts` times."""
    import numpy as np

    def mean(values: np.ndarray) -> np.ndarray:
        averaged: np.ndarray = np.einsum("br,br->b", np.broadcast_to(values, counts.shape), counts) / counts.sum(axis=1)
        return averaged

    def covariance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        product: np.ndarray = mean(one * other) - mean(one) * mean(other)
        return product

    def spread(values: np.ndarray) -> np.ndarray:
        variance = covariance(values, values)
        return np.where(variance > _ROUNDING * mean(values**2), variance, 0.0)

    product = np.sqrt(spread(first) * spread(second))
    correlations: np.ndarray = np.where(product > 0, covariance(first, second) / np.where(product > 0, product, 1), 0.0)
    return correlations.clip(-1, 1)
