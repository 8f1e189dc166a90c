"""What generated answers earn."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from peftkit.errors import DataError
from peftkit.metrics import Metric, Rows, metrics

if TYPE_CHECKING:
    import numpy as np


@metrics.register("mean_reward")
class MeanReward(Metric):
    """Mean of the rewards of the generated answers, as the task sums them up."""

    measures: ClassVar[Literal["answers", "likelihood", "margins", "rewards"]] = "rewards"
    measured: ClassVar[str] = "rewards of answers"

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`; predictions (rows,) as in `tasks.Scored.rewards`."""
        import numpy as np

        if not len(predictions):
            raise DataError(f"the metric {self.name!r} got no rows; a split that is scored needs at least one")
        return {self.score_name: float(np.asarray(predictions, np.float64).mean())}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        return {self.score_name: counts @ predictions / counts.sum(axis=1)}
