"""How well a model tells better answers from worse."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from peftkit.errors import DataError
from peftkit.metrics import Metric, Rows, metrics

if TYPE_CHECKING:
    import numpy as np


class MarginMetric(Metric):
    """The mean of a value of every row's margins."""

    measures: ClassVar[Literal["answers", "likelihood", "margins", "rewards"]] = "margins"
    measured: ClassVar[str] = "better and worse answers"

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`; predictions (rows, 2) as in `tasks.Scored.margins`."""
        if not len(predictions):
            raise DataError(f"the metric {self.name!r} got no rows; a split that is scored needs at least one")
        return {self.score_name: float(self._checked(predictions).mean())}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        return {self.score_name: counts @ self._checked(predictions) / counts.sum(axis=1)}

    def _checked(self, predictions: Rows) -> np.ndarray:
        import numpy as np

        margins = np.asarray(predictions, np.float64)
        return self.values(margins[:, 0], margins[:, 1])

    def values(self, margin: np.ndarray, gain: np.ndarray) -> np.ndarray:
        """(rows,) values of `margin` (rows,), the lead in reward, and `gain` (rows,), what it has grown by."""
        raise NotImplementedError


@metrics.register("reward_accuracy")
class RewardAccuracy(MarginMetric):
    """Share of rows whose better answer is rewarded more than the worse; an equal reward is wrong."""

    def values(self, margin: np.ndarray, gain: np.ndarray) -> np.ndarray:
        """See `MarginMetric.values`."""
        right: np.ndarray = (margin > 0).astype(float)
        return right


@metrics.register("reward_margin")
class RewardMargin(MarginMetric):
    """By how much the better answer is rewarded more than the worse, on average."""

    def values(self, margin: np.ndarray, gain: np.ndarray) -> np.ndarray:
        """See `MarginMetric.values`."""
        return margin


@metrics.register("win_rate")
class WinRate(MarginMetric):
    """Share of rows on which the tuned model prefers the better answer more than the base does, ties counted half.

    With dpo, whose reward is the distance from the base, it equals reward_accuracy but for ties.
    """

    def values(self, margin: np.ndarray, gain: np.ndarray) -> np.ndarray:
        """See `MarginMetric.values`."""
        import numpy as np

        if np.isnan(gain).any():
            raise DataError("the metric 'win_rate' needs a base model that can be compared with; remove it")
        wins: np.ndarray = (gain > 0) + 0.5 * (gain == 0)
        return wins
