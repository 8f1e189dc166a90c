"""Confusions, per-class scores and calibration of a split, arranged for reading."""

from __future__ import annotations

from dataclasses import dataclass

from peftkit.report.charts import reliability_chart
from peftkit.results import ClassificationDetail

MATRIX_CLASSES = 20
"""More classes than that make no readable matrix: the most frequent confusions are listed instead."""
CLASSES_SHOWN = 20
CONFUSIONS_SHOWN = 20


@dataclass(frozen=True)
class Cell:
    """Rows of one class that were predicted as another; `share` of all rows of the class."""

    rows: int
    share: float
    right: bool


@dataclass(frozen=True)
class MatrixRow:
    """All rows of one class."""

    label: str
    cells: tuple[Cell, ...]
    support: int


@dataclass(frozen=True)
class Confusion:
    """Rows of class `reference` that were taken for `prediction`."""

    reference: str
    prediction: str
    rows: int
    share: float


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class ClassificationView:
    """What the page shows of `ClassificationDetail`.

    Args:
        matrix: empty if there are too many classes.
        confusions: the most frequent ones, most frequent first.
        classes: in class order, or from the worst F1 upwards if there are many.
        more_classes: those that are folded away.
        confidence: mean over all rows.
    """

    labels: tuple[str, ...]
    matrix: tuple[MatrixRow, ...]
    confusions: tuple[Confusion, ...]
    classes: tuple[ClassScores, ...]
    more_classes: tuple[ClassScores, ...]
    calibration_error: float
    confidence: float
    accuracy: float
    reliability: str

    @property
    def wide_labels(self) -> bool:
        """Whether the labels are too long to stand side by side."""
        return sum(map(len, self.labels)) > 60


def classification_view(detail: ClassificationDetail, *, split: str) -> ClassificationView:
    """`detail` of `split`, arranged."""
    from markupsafe import Markup

    scores = [
        ClassScores(*row)
        for row in zip(detail.labels, detail.precision, detail.recall, detail.f1, detail.support, strict=True)
    ]
    if len(scores) > CLASSES_SHOWN:
        scores.sort(key=lambda row: (row.support == 0, row.f1))
    chart = reliability_chart(detail, title=f"Reliability diagram, {split}: accuracy over confidence")
    rows = max(1, sum(count for _, _, count in detail.calibration_bins))
    return ClassificationView(
        labels=detail.labels,
        matrix=_matrix(detail) if len(detail.labels) <= MATRIX_CLASSES else (),
        confusions=_confusions(detail),
        classes=tuple(scores[:CLASSES_SHOWN]),
        more_classes=tuple(scores[CLASSES_SHOWN:]),
        calibration_error=detail.calibration_error,
        confidence=sum(confidence * count for confidence, _, count in detail.calibration_bins) / rows,
        accuracy=sum(accuracy * count for _, accuracy, count in detail.calibration_bins) / rows,
        reliability=Markup(chart),
    )


def _matrix(detail: ClassificationDetail) -> tuple[MatrixRow, ...]:
    return tuple(
        MatrixRow(
            label,
            tuple(Cell(rows, rows / max(1, sum(row)), column == place) for column, rows in enumerate(row)),
            sum(row),
        )
        for place, (label, row) in enumerate(zip(detail.labels, detail.confusion, strict=True))
    )


def _confusions(detail: ClassificationDetail) -> tuple[Confusion, ...]:
    found = [
        Confusion(detail.labels[reference], detail.labels[prediction], rows, rows / sum(row))
        for reference, row in enumerate(detail.confusion)
        for prediction, rows in enumerate(row)
        if rows and reference != prediction
    ]
    return tuple(sorted(found, key=lambda confusion: (-confusion.rows, -confusion.share))[:CONFUSIONS_SHOWN])
