"""What a classification run reports beyond its metrics: confusion, per-class scores, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftkit.errors import DataError
from peftkit.results import ClassificationDetail

if TYPE_CHECKING:
    import numpy as np

CALIBRATION_BINS = 15


def classification_detail(
    labels: Sequence[str], references: np.ndarray, probabilities: np.ndarray
) -> ClassificationDetail:
    """Confusion matrix, per-class scores and calibration of a single-label classifier.

    Precision without predictions, recall without rows, and F1 without either are 0.

    Args:
        labels: names in class order.
        references: (rows,) class indices.
        probabilities: (rows, labels); the prediction is the most probable class.

    Raises:
        DataError: the sizes do not fit together, or there are no rows.
    """
    import numpy as np
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    references, probabilities = np.asarray(references), np.asarray(probabilities, dtype=np.float64)
    if not len(references) or probabilities.shape != (len(references), len(labels)):
        raise DataError(
            f"{len(references)} references and {len(labels)} labels do not fit probabilities of shape "
            f"{probabilities.shape}; they must be (rows, labels), with at least one row"
        )
    if not np.isin(references, np.arange(len(labels))).all():
        strange = references[~np.isin(references, np.arange(len(labels)))][0]
        raise DataError(f"the reference {strange} is no class index; there are {len(labels)} labels")
    predictions = probabilities.argmax(axis=1)
    classes = np.arange(len(labels))
    scores = precision_recall_fscore_support(references, predictions, labels=classes, zero_division=0.0)
    precision, recall, f1, support = (tuple(column.tolist()) for column in scores)
    error, bins = _calibration(probabilities.max(axis=1), predictions == references)
    return ClassificationDetail(
        labels=tuple(labels),
        confusion=tuple(tuple(row) for row in confusion_matrix(references, predictions, labels=classes).tolist()),
        precision=precision,
        recall=recall,
        f1=f1,
        support=support,
        calibration_error=error,
        calibration_bins=bins,
    )


def _calibration(confidences: np.ndarray, right: np.ndarray) -> tuple[float, tuple[tuple[float, float, int], ...]]:
    """Expected calibration error sum_b rows_b/rows * |accuracy_b - confidence_b|, and the non-empty bins b.

    Bin b of B holds confidences in (b/B, (b+1)/B], as in Guo et al. 2017 (arXiv:1706.04599, section 2).
    """
    import numpy as np

    places = np.ceil(confidences * CALIBRATION_BINS).astype(int).clip(1, CALIBRATION_BINS) - 1
    rows = np.bincount(places, minlength=CALIBRATION_BINS)
    filled = rows > 0
    confidence = np.bincount(places, weights=confidences, minlength=CALIBRATION_BINS)[filled] / rows[filled]
    accuracy = np.bincount(places, weights=right, minlength=CALIBRATION_BINS)[filled] / rows[filled]
    error = float(np.abs(accuracy - confidence) @ rows[filled] / rows.sum())
    return error, tuple(zip(confidence.tolist(), accuracy.tolist(), rows[filled].tolist(), strict=True))
