"""Statistics over seeds: intervals of a mean, and which variants they can tell apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftkit.results import Interval

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """The mean of a score over seeds.

    Args:
        interval: of the mean, Student's t; None with fewer than two values.
        deviation: standard deviation of the values, n - 1; None with fewer than two.
    """

    mean: float
    interval: Interval | None
    deviation: float | None


def estimate(values: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """Mean of at least one value, and mean ± t(level, n - 1) s / √n (Student 1908), s their standard deviation.

    Of values that are not all finite there is no interval.
    """
    mean = statistics.fmean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return Estimate(mean, None, None)
    from scipy import stats

    deviation = statistics.stdev(values)
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return Estimate(mean, Interval(low=mean - half, high=mean + half, level=level), deviation)


def best_first(estimates: Mapping[str, Estimate], *, greater_is_better: bool) -> list[str]:
    """Names by their mean, the best first; a mean that is no number comes last."""
    sign = -1 if greater_is_better else 1

    def order(name: str) -> tuple[bool, float]:
        mean = estimates[name].mean
        return (math.isnan(mean), 0.0 if math.isnan(mean) else sign * mean)

    return sorted(estimates, key=order)


def not_distinguishable(estimates: Mapping[str, Estimate], *, greater_is_better: bool) -> tuple[str, ...]:
    """The name with the best mean and all that its interval cannot tell it from, best first.

    Two are told apart only if both have an interval and the intervals do not overlap. That asks for more than a test of
    the difference at the same level would.
    """
    ordered = best_first(estimates, greater_is_better=greater_is_better)
    if not ordered:
        return ()
    best, *others = ordered
    top = estimates[best].interval
    scored = [name for name in others if not math.isnan(estimates[name].mean)]
    return (best, *(name for name in scored if top is None or _overlap(top, estimates[name].interval)))


def _overlap(one: Interval, other: Interval | None) -> bool:
    return other is None or not (one.high < other.low or other.high < one.low)
