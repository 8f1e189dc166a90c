"""Predictions and references as checked arrays: what every metric does before it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.errors import DataError, RunError
from peftkit.metrics import Rows

if TYPE_CHECKING:
    import numpy as np


def class_rows(predictions: Rows, references: Rows, *, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Class indices (rows,), or 0/1 flags (rows, labels), as integers.

    Raises:
        DataError: other rows than that.
    """
    import numpy as np

    checked = []
    for name, values in zip(("predictions", "references"), _aligned(predictions, references, metric), strict=True):
        whole = values.astype(np.int64, copy=False) if np.isfinite(values).all() else None
        if whole is None or (whole != values).any():
            odd = values.ravel()[np.flatnonzero(~np.isfinite(values) | (values % 1 != 0))[0]]
            raise DataError(
                f"the metric {metric!r} compares classes, but the {name} hold the number {odd:g}; "
                "for real values use pearson, spearman, mse or rmse"
            )
        if values.ndim == 2 and not np.isin(whole, (0, 1)).all():
            raise DataError(
                f"the metric {metric!r} got {name} of shape {values.shape}, which must be 0 or 1 for every label, but "
                f"hold {whole[~np.isin(whole, (0, 1))][0]}"
            )
        checked.append(whole)
    return checked[0], checked[1]


def value_rows(predictions: Rows, references: Rows, *, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Real values (rows,) as float64.

    Raises:
        DataError: other rows than that, or a reference that is not finite.
        RunError: a prediction that is not finite.
    """
    import numpy as np

    predicted, actual = _aligned(predictions, references, metric)
    if actual.ndim == 2:
        raise DataError(
            f"the metric {metric!r} compares one value per row, but the rows have {actual.shape[1]} labels; "
            "for several labels per row use f1_micro, f1_macro or accuracy"
        )
    if not np.isfinite(actual).all():
        row = int(np.flatnonzero(~np.isfinite(actual))[0])
        raise DataError(f"the reference of row {row} is {actual[row]}, no finite number; correct or remove that row")
    if not np.isfinite(predicted).all():
        row = int(np.flatnonzero(~np.isfinite(predicted))[0])
        raise RunError(
            f"the model predicts {predicted[row]} for row {row}: training has diverged; lower training.learning_rate "
            "or set training.max_grad_norm"
        )
    return predicted.astype(np.float64), actual.astype(np.float64)


def _aligned(predictions: Rows, references: Rows, metric: str) -> tuple[np.ndarray, np.ndarray]:
    predicted = _numbers(predictions, "predictions", metric)
    actual = _numbers(references, "references", metric)
    if predicted.shape != actual.shape:
        raise DataError(
            f"the metric {metric!r} got predictions of shape {predicted.shape} for references of shape {actual.shape}; "
            "both must be alike"
        )
    if not len(actual):
        raise DataError(f"the metric {metric!r} got no rows; a split that is scored needs at least one")
    return predicted, actual


def _numbers(values: Rows, name: str, metric: str) -> np.ndarray:
    import numpy as np

    try:
        array = np.asarray(values)
    except ValueError as problem:  # rows of unequal length
        raise DataError(f"the metric {metric!r} got {name} whose rows differ in length") from problem
    if array.dtype.kind not in "biuf" or array.ndim not in (1, 2):
        example = array.ravel()[0] if array.size else array
        raise DataError(
            f"the metric {metric!r} needs {name} as one number per row, or as 0/1 per label; "
            f"got shape {array.shape}, first {example!r}"
        )
    return array
