from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error, root_mean_squared_error

from peftkit.errors import DataError
from peftkit.metrics import Metric, Rows, metrics
from peftkit.metrics.bootstrap import Resampling, bootstrap_intervals


class MeanPrediction(Metric):
    """A plugin's metric: only `compute`, nothing vectorised."""

    name = "mean_prediction"

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        return {"mean_prediction": float(np.mean(predictions)), "rows": float(len(references))}


def test_interval_of_a_share_is_the_binomial_one() -> None:
    rows, share = 2000, 0.8
    predicted = np.ones(rows, dtype=int)
    actual = np.repeat([1, 0], [int(rows * share), rows - int(rows * share)])
    found = bootstrap_intervals(metrics.build("accuracy"), predicted, actual)["accuracy"]
    half = norm.ppf(0.975) * np.sqrt(share * (1 - share) / rows)
    # 1000 resamples leave an error of about 5 % of the half width in each end.
    assert found.low == pytest.approx(share - half, abs=0.15 * half)
    assert found.high == pytest.approx(share + half, abs=0.15 * half)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_interval_of_a_mean_is_the_normal_one(level: float) -> None:
    values = np.random.default_rng(5).normal(3.0, 2.0, 400)
    found = bootstrap_intervals(MeanPrediction(), values, np.zeros(400), resampling=Resampling(level=level))
    half = norm.ppf((1 + level) / 2) * values.std() / np.sqrt(400)
    assert found["mean_prediction"].low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found["mean_prediction"].high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert found["mean_prediction"].level == level
    assert (found["rows"].low, found["rows"].high) == (400, 400)


def test_intervals_hold_the_truth_as_often_as_they_claim() -> None:
    """Of 300 data sets with a true accuracy of 0.7, about 90 % must have it in their 90 % interval."""
    random = np.random.default_rng(11)
    held = 0
    for _ in range(300):
        right = (random.random(200) < 0.7).astype(int)
        found = bootstrap_intervals(
            metrics.build("accuracy"), right, np.ones(200, dtype=int), resampling=Resampling(level=0.9, resamples=300)
        )
        held += found["accuracy"].low <= 0.7 <= found["accuracy"].high
    # Four standard errors of a share of 0.9 among 300, and a little for the discreteness of 200 rows.
    assert held / 300 == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / 300) + 0.02)


ORACLES: dict[str, Any] = {
    "accuracy": accuracy_score,
    "f1_macro": lambda actual, predicted: f1_score(actual, predicted, average="macro", zero_division=0),
    "f1_micro": lambda actual, predicted: f1_score(actual, predicted, average="micro", zero_division=0),
    "f1_weighted": lambda actual, predicted: f1_score(actual, predicted, average="weighted", zero_division=0),
    "f1": lambda actual, predicted: f1_score(actual, predicted, average="binary", zero_division=0),
    "matthews_correlation": matthews_corrcoef,
    "pearson": lambda actual, predicted: pearsonr(predicted, actual).statistic,
    "spearman": lambda actual, predicted: spearmanr(predicted, actual).statistic,
    "mse": mean_squared_error,
    "rmse": root_mean_squared_error,
}


def _rows(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """41 rows: class indices with a rare class, two classes, several labels, or values with ties far from zero."""
    random = np.random.default_rng(7)
    if kind == "values":
        actual = random.integers(0, 12, 41) / 4 + 1000.0
        return actual + random.normal(0, 1, 41).round(1), actual
    classes, shape = (2, (41, 4)) if kind == "labels" else (2 if kind == "two" else 6, (41,))
    actual = random.integers(0, classes, shape)
    return np.where(random.random(shape) < 0.6, actual, random.integers(0, classes, shape)), actual


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "classes") for name in ("accuracy", "f1_macro", "f1_micro", "f1_weighted", "matthews_correlation")),
        *((name, "two") for name in ("f1", "f1_macro", "matthews_correlation")),
        *((name, "labels") for name in ("accuracy", "f1_macro", "f1_micro", "f1_weighted")),
        *((name, "values") for name in ("pearson", "spearman", "mse", "rmse")),
    ],
)
def test_resamples_score_as_a_plain_loop_over_rows(name: str, kind: str) -> None:
    predicted, actual = _rows(kind)
    average = name.partition("_")[2]
    metric = metrics.build({"name": "f1", "average": average} if name.startswith("f1_") else name)
    random = np.random.default_rng(1)
    counts = np.array([np.bincount(random.integers(0, 41, 41), minlength=41) for _ in range(25)])
    counts[0] = 1  # the rows as they are
    found = metric.resampled(predicted, actual, counts)
    rows = [np.repeat(np.arange(41), count) for count in counts]
    assert list(found) == [name]
    np.testing.assert_allclose(
        found[name], [ORACLES[name](actual[chosen], predicted[chosen]) for chosen in rows], rtol=1e-9, atol=1e-12
    )
    assert found[name][0] == pytest.approx(metric.compute(predicted, actual)[name], rel=1e-9)


@pytest.mark.parametrize("name", ["pearson", "spearman", "matthews_correlation", "f1", "f1_macro"])
def test_resamples_of_one_row_only_are_scored_as_compute_does(name: str) -> None:
    predicted, actual = np.array([0, 0, 1]), np.array([0, 1, 1])
    metric = metrics.build(name)
    found = metric.resampled(predicted, actual, np.array([[3, 0, 0], [0, 3, 0], [0, 0, 3]]))[name]
    assert found.tolist() == [metric.compute([p] * 3, [a] * 3)[name] for p, a in zip(predicted, actual, strict=True)]


@pytest.mark.parametrize("scale", [1e-160, 1.0, 1e160])
def test_correlations_survive_extreme_units(scale: float) -> None:
    predicted, actual = _rows("values")
    plain = bootstrap_intervals(metrics.build("pearson"), predicted, actual)["pearson"]
    scaled = bootstrap_intervals(metrics.build("pearson"), predicted * scale, actual * scale)["pearson"]
    assert (scaled.low, scaled.high) == (pytest.approx(plain.low, rel=1e-6), pytest.approx(plain.high, rel=1e-6))


def test_same_rows_same_interval_whatever_their_type() -> None:
    predicted, actual = _rows("classes")
    metric = metrics.build("f1_macro")
    first = bootstrap_intervals(metric, predicted, actual)
    assert first == bootstrap_intervals(metric, predicted.tolist(), actual.astype(np.int32).tolist())
    assert first != bootstrap_intervals(metric, predicted, actual, resampling=Resampling(seed=1))


def test_many_rows_are_drawn_in_portions_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted, actual = _rows("classes")
    whole = bootstrap_intervals(metrics.build("accuracy"), predicted, actual)
    monkeypatch.setattr("peftkit.metrics.bootstrap._DRAWS_AT_ONCE", 41 * 7)
    assert bootstrap_intervals(metrics.build("accuracy"), predicted, actual) == whole


def test_perfect_predictions_and_single_rows_have_no_width() -> None:
    for rows in (1, 30):
        found = bootstrap_intervals(metrics.build("accuracy"), np.arange(rows), np.arange(rows))["accuracy"]
        assert (found.low, found.high) == (1.0, 1.0)


def test_rows_are_checked() -> None:
    with pytest.raises(DataError, match="'accuracy' got no rows"):
        bootstrap_intervals(metrics.build("accuracy"), [], [])
