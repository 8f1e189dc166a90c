"""Our metrics as modules of the evaluate library."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import evaluate

    from peftkit.metrics import Metric, Rows

_ARGUMENTS = """
Args:
    predictions: class indices or real values, one per row; 0/1 per label for multi-label rows.
    references: shaped like `predictions`.
"""


def evaluate_module(metric: Metric) -> evaluate.Metric:
    """An `evaluate.Metric` that computes `metric`; it keeps added rows in memory."""
    import evaluate
    from datasets import Features, List, Value

    class Module(evaluate.Metric):
        """The metric of the enclosing call."""

        def _info(self) -> evaluate.MetricInfo:
            # Class indices too: with integer features evaluate would silently cut 0.7 to 0.
            shapes = (Value("float64"), List(Value("float64")), Value("string"), List(Value("string")))
            return evaluate.MetricInfo(
                description=type(metric).__doc__ or "",
                citation="",
                inputs_description=_ARGUMENTS,
                features=[Features(predictions=shape, references=shape) for shape in shapes],
            )

        def _compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
            return metric.compute(predictions, references)

    # No arrow file: a crash would leave it locked for the next process with the same experiment id.
    module = Module(keep_in_memory=True)
    module.info.module_name = metric.score_name  # evaluate has put the name of the class here
    return module
