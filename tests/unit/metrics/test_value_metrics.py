from __future__ import annotations

import numpy as np
import pytest

from peftkit.errors import DataError, RunError
from peftkit.metrics import metrics

PREDICTED = [1.0, 2.0, 4.0, 3.0]
ACTUAL = [1.0, 2.0, 3.0, 10.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # Deviations from the means 2.5 and 4: (-1.5, -.5, 1.5, .5) and (-3, -2, -1, 6).
        ("pearson", (4.5 + 1 - 1.5 + 3) / np.sqrt(5 * 50)),
        # Ranks 1 2 4 3 and 1 2 3 4: 1 - 6 * (0 + 0 + 1 + 1) / (4 * 15).
        ("spearman", 1 - 12 / 60),
        ("mse", (0 + 0 + 1 + 49) / 4),
        ("rmse", np.sqrt(50 / 4)),
    ],
)
def test_four_rows_by_hand(name: str, value: float) -> None:
    metric = metrics.build(name)
    assert metric.compute(PREDICTED, ACTUAL) == {name: pytest.approx(value, abs=1e-12)}
    assert metric.greater_is_better == (name in ("pearson", "spearman"))


def test_spearman_gives_ties_their_mean_rank() -> None:
    # Ranks 1.5 1.5 3 4 and 1 2 3 4; deviations (-1, -1, .5, 1.5) and (-1.5, -.5, .5, 1.5).
    expected = (1.5 + 0.5 + 0.25 + 2.25) / np.sqrt(4.5 * 5)
    assert metrics.build("spearman").compute([2, 2, 5, 9], [1, 2, 3, 4]) == {"spearman": pytest.approx(expected)}


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize(
    ("predicted", "actual"),
    [([3.0, 3.0, 3.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [0.5, 0.5, 0.5]), ([2.0], [1.0])],
    ids=["same prediction", "same reference", "one row"],
)
def test_correlation_with_a_constant_is_zero(name: str, predicted: list[float], actual: list[float]) -> None:
    assert metrics.build(name).compute(predicted, actual) == {name: 0.0}


def test_values_that_differ_only_by_rounding_are_constant() -> None:
    almost = [0.1 + 0.2, 0.3, 0.3, 0.3]
    assert len(set(almost)) == 2
    assert metrics.build("pearson").compute(almost, [1.0, 2.0, 3.0, 4.0]) == {"pearson": 0.0}


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_constant_checkpoint_loses_against_any_better_one(name: str) -> None:
    metric = metrics.build(name)
    constant = metric.compute([3.0, 3.0, 3.0], [1.0, 2.0, 3.0])[name]
    learnt = metric.compute([1.0, 2.0, 2.5], [1.0, 2.0, 3.0])[name]
    assert np.greater(learnt, constant)
    assert not np.greater(constant, learnt)


@pytest.mark.parametrize("name", ["pearson", "spearman", "mse", "rmse"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_diverged_model_is_an_error_not_a_score(name: str, bad: float) -> None:
    with pytest.raises(
        RunError, match=f"predicts {bad} for row 1: training has diverged; lower training.learning_rate"
    ):
        metrics.build(name).compute([0.5, bad], [0.5, 1.0])
    with pytest.raises(DataError, match=f"the reference of row 0 is {bad}"):
        metrics.build(name).compute([0.5, 0.5], [bad, 1.0])


@pytest.mark.parametrize("name", ["pearson", "spearman", "mse", "rmse"])
def test_several_labels_per_row_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"'{name}' compares one value per row, but the rows have 2 labels"):
        metrics.build(name).compute([[0, 1]], [[0, 1]])
