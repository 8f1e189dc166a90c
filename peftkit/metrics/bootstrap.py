"""Confidence intervals of metrics by resampling rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.metrics import Metric, Rows
from peftkit.results import Interval

if TYPE_CHECKING:
    import numpy as np

_DRAWS_AT_ONCE = 4_000_000  # bounds memory to some tens of MB, however many rows there are


@dataclass(frozen=True)
class Resampling:
    """How to bootstrap.

    Args:
        level: share of resamples inside the interval, between 0 and 1.
        resamples: how many data sets to draw.
        seed: of the draws; the same for every metric, so that all see the same resamples.
    """

    level: float = 0.95
    resamples: int = 1000
    seed: int = 0


_DEFAULTS = Resampling()


def bootstrap_intervals(
    metric: Metric, predictions: Rows, references: Rows, *, resampling: Resampling = _DEFAULTS
) -> dict[str, Interval]:
    """Percentile bootstrap over rows of every score of `metric` (Efron & Tibshirani 1993, section 13.3).

    A resample draws as many rows as there are, with replacement. The interval covers the draw of the rows, not that of
    the training seed. Empty for metrics that cannot be resampled; see `Metric.resampled`.

    Args:
        predictions, references: see `Metric.compute`.

    Raises:
        DataError: the metric has no meaning for such rows.
    """
    import numpy as np

    metric.compute(predictions, references)  # checks the rows
    predicted, actual = np.asarray(predictions), np.asarray(references)
    first, group = _distinct_rows(predicted, actual)
    parts = [
        metric.resampled(predicted[first], actual[first], counts)
        for counts in _resamples(group, len(first), resampling=resampling)
    ]
    outside = (1 - resampling.level) / 2
    intervals = {}
    for name in parts[0]:
        scores = np.concatenate([part[name] for part in parts])
        low, high = np.quantile(scores, (outside, 1 - outside))
        intervals[name] = Interval(low=float(low), high=float(high), level=resampling.level)
    return intervals


def _distinct_rows(predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of one row of each kind, and for every row the number of its kind.

    Classifiers give few kinds of rows (classes x classes), so the metrics have little to sum over.
    """
    import numpy as np

    rows = len(references)
    if predictions.dtype.kind not in "biuf":
        return np.arange(rows), np.arange(rows)
    both = np.column_stack([predictions.reshape(rows, -1), references.reshape(rows, -1)])
    _, first, group = np.unique(both, axis=0, return_index=True, return_inverse=True)
    return first, group.reshape(-1)


def _resamples(group: np.ndarray, kinds: int, *, resampling: Resampling) -> Iterator[np.ndarray]:
    """Counts (some resamples, kinds) of rows of each kind, until there are enough resamples."""
    import numpy as np

    random = np.random.default_rng(resampling.seed)
    rows, left = len(group), resampling.resamples
    while left > 0:
        size = min(left, max(1, _DRAWS_AT_ONCE // rows))
        drawn = group[random.integers(0, rows, size=(size, rows))]
        drawn += np.arange(size)[:, None] * kinds
        yield np.bincount(drawn.ravel(), minlength=size * kinds).reshape(size, kinds)
        left -= size
