from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score

from peftkit.errors import DataError
from peftkit.metrics.classification_detail import classification_detail


def test_calibration_by_hand() -> None:
    """Confidences .95 .95 .95 .60 .60, right: yes yes no yes no, in bins (14/15, 1] and (8/15, 9/15]."""
    confidence = np.array([0.95, 0.95, 0.95, 0.6, 0.6])
    probabilities = np.column_stack([confidence, 1 - confidence])
    detail = classification_detail(["a", "b"], np.array([0, 0, 1, 0, 1]), probabilities)
    assert detail.calibration_bins == (
        (pytest.approx(0.6), pytest.approx(0.5), 2),
        (pytest.approx(0.95), pytest.approx(2 / 3), 3),
    )
    assert detail.calibration_error == pytest.approx(2 / 5 * 0.1 + 3 / 5 * (0.95 - 2 / 3))


@pytest.mark.parametrize(("confidence", "bins"), [((0.6, 0.6 + 1e-9), 2), ((0.6 - 1e-9, 0.6), 1), ((1.0, 0.96), 1)])
def test_bins_are_open_below_and_closed_above(confidence: tuple[float, float], bins: int) -> None:
    top = np.array(confidence)
    detail = classification_detail(["a", "b"], np.array([0, 0]), np.column_stack([top, 1 - top]))
    assert len(detail.calibration_bins) == bins


def test_a_calibrated_classifier_has_hardly_any_error() -> None:
    random = np.random.default_rng(2)
    confidence = random.uniform(0.5, 1.0, 40_000)
    references = np.where(random.random(40_000) < confidence, 0, 1)
    detail = classification_detail(["a", "b"], references, np.column_stack([confidence, 1 - confidence]))
    assert detail.calibration_error < 0.01
    assert sum(rows for _, _, rows in detail.calibration_bins) == 40_000


def test_tables_agree_with_scikit_learn() -> None:
    random = np.random.default_rng(4)
    references = random.integers(0, 4, 57)  # the fifth class never occurs
    probabilities = random.dirichlet(np.ones(5), 57) + 0.5 * np.eye(5)[references]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predictions = probabilities.argmax(axis=1)
    detail = classification_detail(["a", "b", "c", "d", "e"], references, probabilities)
    classes = range(5)
    assert [list(row) for row in detail.confusion] == confusion_matrix(references, predictions, labels=classes).tolist()
    for found, score in ((detail.precision, precision_score), (detail.recall, recall_score), (detail.f1, f1_score)):
        expected = score(references, predictions, labels=classes, average=None, zero_division=0)
        assert found == pytest.approx(expected.tolist())
    assert detail.support == tuple(np.bincount(references, minlength=5).tolist())
    # The bins' accuracies, weighted by their rows, are the accuracy.
    right = sum(accuracy * rows for _, accuracy, rows in detail.calibration_bins)
    assert right / 57 == pytest.approx(accuracy_score(references, predictions))


def test_rows_of_the_confusion_matrix_are_references() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    detail = classification_detail(["no", "yes"], np.array([1, 1, 1]), probabilities)
    assert detail.confusion == ((0, 0), (2, 1))
    assert detail.precision == (0.0, 1.0)
    assert detail.recall == (0.0, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("references", "labels", "message"),
    [
        ([0, 1], ["a", "b"], r"2 references and 2 labels do not fit probabilities of shape \(1, 2\)"),
        ([0], ["a"], r"1 references and 1 labels do not fit probabilities of shape \(1, 2\)"),
        ([2], ["a", "b"], "the reference 2 is no class index; there are 2 labels"),
        ([-100], ["a", "b"], "the reference -100 is no class index"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(references: list[int], labels: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        classification_detail(labels, np.array(references), np.array([[0.4, 0.6]]))


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="with at least one row"):
        classification_detail(["a", "b"], np.array([], dtype=int), np.zeros((0, 2)))
