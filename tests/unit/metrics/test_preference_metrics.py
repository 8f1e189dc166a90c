from __future__ import annotations

import numpy as np
import pytest

from peftkit.errors import DataError
from peftkit.metrics import metrics
from peftkit.metrics.bootstrap import bootstrap_intervals

MARGINS = np.array([[0.5, -1.0], [-0.25, 2.0], [0.0, 0.0], [1.0, 0.5]])
"""Lead in reward, and what the lead in likelihood has grown by."""
EXPECTED = {"reward_accuracy": 2 / 4, "reward_margin": 1.25 / 4, "win_rate": 2.5 / 4}


@pytest.mark.parametrize("name", EXPECTED)
def test_values_by_hand(name: str) -> None:
    assert metrics.build(name).compute(MARGINS, MARGINS) == {name: EXPECTED[name]}


def test_mean_reward_by_hand() -> None:
    assert metrics.build("mean_reward").compute([1.0, 0.0, 0.5], [1.0, 0.0, 0.5]) == {"mean_reward": 0.5}


@pytest.mark.parametrize("name", [*EXPECTED, "mean_reward"])
def test_intervals_are_those_of_resampled_rows(name: str) -> None:
    metric, random = metrics.build(name), np.random.default_rng(0)
    rows = random.normal(0.3, 1.0, (80, 2))
    rows = rows[:, 0] if name == "mean_reward" else rows
    found = bootstrap_intervals(metric, rows, rows)[name]
    draws = [rows[random.integers(0, 80, 80)] for _ in range(1000)]
    low, high = np.quantile([metric.compute(draw, draw)[name] for draw in draws], (0.025, 0.975))
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)


@pytest.mark.parametrize("name", [*EXPECTED, "mean_reward"])
def test_no_rows_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"'{name}' got no rows"):
        metrics.build(name).compute([], [])


def test_win_rate_without_a_base_is_refused() -> None:
    rows = np.array([[1.0, np.nan]])
    with pytest.raises(DataError, match="needs a base model that can be compared with"):
        metrics.build("win_rate").compute(rows, rows)
