from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from peftkit.errors import DataError
from peftkit.metrics import metrics

# Ten rows, two classes: 3 hits of class 1, 2 false alarms, 1 miss, 4 right zeros.
PREDICTED = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
ACTUAL = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("spec", "score", "value"),
    [
        ("accuracy", "accuracy", 7 / 10),
        ("f1", "f1", 2 * 3 / (2 * 3 + 2 + 1)),
        ("f1_macro", "f1_macro", (6 / 9 + 8 / 11) / 2),
        ("f1_micro", "f1_micro", 7 / 10),
        ({"name": "f1", "average": "weighted"}, "f1_weighted", (4 * 6 / 9 + 6 * 8 / 11) / 10),
        ("matthews_correlation", "matthews_correlation", (3 * 4 - 2 * 1) / np.sqrt(5 * 4 * 5 * 6)),
    ],
    ids=str,
)
def test_two_classes_by_hand(spec: str | dict[str, str], score: str, value: float) -> None:
    metric = metrics.build(spec)
    assert metric.score_name == score
    assert metric.compute(PREDICTED, ACTUAL) == {score: pytest.approx(value, abs=1e-12)}
    assert metric.greater_is_better


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_average_is_part_of_the_score_name(average: str) -> None:
    metric = metrics.build({"name": "f1", "average": average})
    same = f1_score(ACTUAL, PREDICTED, average=average)
    assert metric.compute(PREDICTED, ACTUAL) == {f"f1_{average}": pytest.approx(same)}


ORACLES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "f1_macro": lambda actual, predicted: f1_score(actual, predicted, average="macro", zero_division=0),
    "f1_micro": lambda actual, predicted: f1_score(actual, predicted, average="micro", zero_division=0),
    "matthews_correlation": matthews_corrcoef,
}


@pytest.mark.parametrize("name", ORACLES)
def test_many_classes_agree_with_scikit_learn(name: str) -> None:
    random = np.random.default_rng(3)
    actual = random.integers(0, 7, 41)
    predicted = np.where(random.random(41) < 0.6, actual, random.integers(0, 5, 41))
    found = metrics.build(name).compute(predicted, actual)
    assert found == {name: pytest.approx(ORACLES[name](actual, predicted), abs=1e-12)}


def test_several_labels_per_row() -> None:
    actual = [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]]
    predicted = [[1, 0, 1], [0, 1, 1], [0, 0, 0], [1, 0, 0]]
    # Rows 0 and 2 are right in every label. Label 0: 2 hits; label 1: 1 hit, 1 miss; label 2: 1 hit, 1 false alarm.
    assert metrics.build("accuracy").compute(predicted, actual) == {"accuracy": 0.5}
    assert metrics.build("f1_micro").compute(predicted, actual) == {"f1_micro": pytest.approx(8 / 10)}
    macro = (1 + 2 / 3 + 2 / 3) / 3
    assert metrics.build("f1_macro").compute(predicted, actual) == {"f1_macro": pytest.approx(macro)}


@pytest.mark.parametrize("name", ["accuracy", "f1", "f1_macro", "f1_micro", "matthews_correlation"])
@pytest.mark.parametrize("answer", [0, 1])
def test_always_the_same_class_neither_fails_nor_warns(name: str, answer: int) -> None:
    value = metrics.build(name).compute([answer] * 4, [1, 0, 0, 0])[name]
    right = 1 if answer else 3
    expected = {
        "accuracy": right / 4,
        "f1": 2 / 5 if answer else 0.0,
        "f1_macro": (2 / 5 if answer else 6 / 7) / 2,
        "f1_micro": right / 4,
        "matthews_correlation": 0.0,
    }
    assert value == pytest.approx(expected[name], abs=1e-12)


@pytest.mark.parametrize(("spec", "value"), [("f1", 0.0), ("f1_macro", 1.0)])
def test_class_that_never_occurs(spec: str, value: float) -> None:
    """Neither predicted nor actual: F1 of class 1 is 0, and macro is over the class that there is."""
    assert metrics.build(spec).compute([0, 0, 0], [0, 0, 0]) == {spec: value}
    labels = metrics.build("f1_macro").compute([[1, 0], [1, 0]], [[1, 0], [1, 0]])
    assert labels == {"f1_macro": 0.5}


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "matthews_correlation"])
def test_one_row(name: str) -> None:
    expected = 0.0 if name == "matthews_correlation" else 1.0
    assert metrics.build(name).compute([2], [2]) == {name: expected}


def test_whole_floats_are_class_indices() -> None:
    assert metrics.build("accuracy").compute(np.float32([0, 1, 2]), np.array([0, 1, 1])) == {
        "accuracy": pytest.approx(2 / 3)
    }


@pytest.mark.parametrize(
    ("name", "predicted", "actual", "message"),
    [
        ("accuracy", [0.25, 1.0], [0, 1], r"'accuracy' compares classes, but the predictions hold the number 0\.25"),
        ("f1_macro", [0, 1], [0, float("nan")], "the references hold the number nan; for real values use pearson"),
        ("accuracy", [0, 1, 1], [0, 1], r"predictions of shape \(3,\) for references of shape \(2,\)"),
        ("accuracy", [], [], "'accuracy' got no rows"),
        ("accuracy", ["yes"], ["no"], r"one number per row, or as 0/1 per label; got shape \(1,\), first .*'yes'"),
        ("accuracy", [[0], [1, 2]], [[0], [1, 2]], "got predictions whose rows differ in length"),
        ("f1_micro", [[0, 3]], [[0, 1]], "must be 0 or 1 for every label, but hold 3"),
        ("f1", [0, 1], [0, 2], "'f1' is of class 1 out of two .* but there is class 2; use f1_macro"),
        ("f1", [[0, 1]], [[0, 1]], "'f1' is of class 1 .* but there is 2 labels per row; use f1_macro"),
        ("matthews_correlation", [[0, 1]], [[0, 1]], "the rows have 2 labels; use f1_micro, f1_macro or accuracy"),
    ],
)
def test_rows_that_make_no_sense_are_refused(name: str, predicted: list, actual: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        metrics.build(name).compute(predicted, actual)
