"""Intervals of means against Student's table, and who is told apart by them."""

from __future__ import annotations

import math

import pytest

from peftkit.compare.statistics import Estimate, best_first, estimate, not_distinguishable
from peftkit.results import Interval


@pytest.mark.parametrize(
    ("values", "quantile"),
    # the 97.5 % points of t with n - 1 degrees of freedom, from printed tables
    [
        ([0.80, 0.84], 12.7062),
        ([0.80, 0.82, 0.84], 4.30265),
        ([1.0, 2.0, 4.0, 4.0], 3.18245),
        ([3, 1, 4, 1, 5], 2.77645),
    ],
)
def test_interval_of_a_mean_is_that_of_students_table(values: list[float], quantile: float) -> None:
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = quantile * deviation / math.sqrt(len(values))
    found = estimate(values)
    assert found.mean == pytest.approx(mean)
    assert found.deviation == pytest.approx(deviation)
    assert found.interval is not None
    assert found.interval.low == pytest.approx(mean - half, abs=1e-4 * deviation)
    assert found.interval.high == pytest.approx(mean + half, abs=1e-4 * deviation)
    assert found.interval.level == 0.95


def test_interval_equals_that_of_scipy() -> None:
    from scipy import stats

    values = [0.861, 0.8573, 0.8702, 0.8655, 0.8619, 0.8688, 0.8641]
    low, high = stats.t.interval(0.9, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
    found = estimate(values, level=0.9).interval
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_one_value_has_no_interval_and_equal_values_an_empty_one() -> None:
    assert estimate([0.7]) == Estimate(0.7, None, None)
    assert estimate([0.5, 0.5, 0.5]) == Estimate(0.5, Interval(low=0.5, high=0.5), 0.0)


def between(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, Interval(low=low, high=high), 0.1)


FOUR = {"low": between(0.1, 0.2), "top": between(0.8, 0.9), "touching": between(0.6, 0.8), "next": between(0.5, 0.79)}


def test_those_whose_interval_overlaps_that_of_the_best_are_not_told_apart_from_it() -> None:
    assert not_distinguishable(FOUR, greater_is_better=True) == ("top", "touching")
    assert not_distinguishable(FOUR, greater_is_better=False) == ("low",)


def test_overlap_is_with_the_best_only() -> None:
    chain = {"a": between(0.7, 0.9), "b": between(0.55, 0.75), "c": between(0.4, 0.6)}
    assert not_distinguishable(chain, greater_is_better=True) == ("a", "b")


def test_without_an_interval_nothing_is_told_apart() -> None:
    assert not_distinguishable({**FOUR, "once": Estimate(0.0, None, None)}, greater_is_better=True) == (
        "top",
        "touching",
        "once",
    )
    assert set(not_distinguishable({**FOUR, "once": Estimate(2.0, None, None)}, greater_is_better=True)) == {
        "once",
        *FOUR,
    }
    assert not_distinguishable({}, greater_is_better=True) == ()


def test_a_mean_that_is_no_number_comes_last_in_both_directions() -> None:
    found = {"broken": Estimate(math.nan, None, None), "b": between(0.2, 0.3), "a": between(0.7, 0.8)}
    assert best_first(found, greater_is_better=True) == ["a", "b", "broken"]
    assert best_first(found, greater_is_better=False) == ["b", "a", "broken"]
    assert not_distinguishable(found, greater_is_better=True) == ("a",)
    assert estimate([0.5, math.nan]).interval is None
