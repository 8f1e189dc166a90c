"""Which score stands for a run."""

from __future__ import annotations

from dataclasses import dataclass

from peftkit.results import Interval, RunResult

_UNTOUCHED = "test"
_KNOWN_SPLITS = ("validation", "train")


@dataclass(frozen=True)
class MainScore:
    """The number at the top of the report.

    Args:
        interval: None where the metric has none.
        caveat: how the rows it was measured on had a part in the training, or None.
    """

    split: str
    metric: str
    value: float
    interval: Interval | None
    caveat: str | None


def chosen_by(result: RunResult) -> tuple[str, str]:
    """Split and metric that chose the weights: validation_accuracy -> validation, accuracy."""
    for split in sorted({*result.splits, *_KNOWN_SPLITS}, key=len, reverse=True):
        if result.best_metric.startswith(f"{split}_"):
            return split, result.best_metric.removeprefix(f"{split}_")
    return "", result.best_metric


def main_score(result: RunResult) -> MainScore | None:
    """The metric that chose the weights, on the test split if there is one, else on the rows it was chosen on."""
    chosen_split, metric = chosen_by(result)
    scored = [split for split, record in result.splits.items() if record.metrics]
    if not scored:
        return None
    split = next((name for name in (_UNTOUCHED, chosen_split) if name in scored), scored[0])
    record = result.splits[split]
    metric = metric if metric in record.metrics else next(iter(record.metrics))
    return MainScore(
        split, metric, record.metrics[metric], record.intervals.get(metric), _caveat(result, split, chosen_split)
    )


def _caveat(result: RunResult, split: str, chosen_split: str) -> str | None:
    if split == "train":
        return "Measured on the training rows, for want of others: expect lower scores on new ones."
    evaluations = sum(any(key.startswith(f"{split}_") for key in point.values) for point in result.history)
    if split == chosen_split and evaluations > 1:
        return f"The {split} rows also chose the best of {evaluations} checkpoints, which flatters this score a little."
    return None
