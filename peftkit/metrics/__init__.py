"""Metrics: pure functions of predictions and references, computed by scikit-learn and scipy, without a network.

Every metric is also an `evaluate.Metric` (`Metric.module`), so it combines with those of the evaluate library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from peftkit.registry import Component, Registry

if TYPE_CHECKING:
    import evaluate
    import numpy as np

Rows: TypeAlias = "Sequence[Any] | np.ndarray"
"""Predictions or references: (rows,) class indices, real values, or objects such as strings; (rows, labels) 0/1 for
multi-label; (rows, 3) likelihoods."""


class Metric(Component):
    """A named score of predictions against references."""

    measures: ClassVar[Literal["answers", "likelihood", "margins", "rewards"]] = "answers"
    """likelihood: it is given `tasks.Scored.likelihood` in place of predictions, and its numbers of tokens in place of
    references, so that a task that generates need not do so for it; margins, rewards: these of `Scored` as both."""
    measured: ClassVar[str] = "answers"
    """What it measures, in words."""

    @property
    def needs_answers(self) -> bool:
        """Whether a task that generates has to do so for it."""
        return self.measures in ("answers", "rewards")

    @property
    def score_name(self) -> str:
        """Name of the score that selects checkpoints. Differs from `name` where options change what is computed."""
        return self.name

    @property
    def greater_is_better(self) -> bool:
        """Whether training keeps the checkpoint with the highest value."""
        return True

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """Scores by name; the first is called `score_name`.

        Args:
            predictions: (rows,) class indices or real values; (rows, labels) 0/1 for multi-label.
            references: the same shape as `predictions`.

        Raises:
            DataError: the metric has no meaning for such rows, or there are none.
        """
        raise NotImplementedError

    def check(self, references: Rows) -> None:
        """Make sure that the metric has a meaning for such references.

        Raises:
            DataError: it has none.
        """
        self.compute(references, references)

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of many resamples of the rows, for `bootstrap_intervals`: (resamples,) by name.

        This general form calls `compute` once per resample. A metric that is too slow for a thousand calls returns {}
        instead, and is then reported without an interval.

        Args:
            counts: (resamples, rows) integers; how often each resample holds each row.
        """
        import numpy as np

        scores = []
        for count in counts:
            rows = np.repeat(np.arange(len(count)), count)
            scores.append(self.compute(predictions[rows], references[rows]))
        return {name: np.array([score[name] for score in scores]) for name in scores[0]}

    def module(self) -> evaluate.Metric:
        """This metric for the evaluate library: `evaluate.combine([metric.module(), ...])` works offline."""
        from peftkit.metrics.evaluate_module import evaluate_module

        return evaluate_module(self)


metrics: Registry[Metric] = Registry("peftkit.metrics", "metric")
