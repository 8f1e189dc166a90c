"""Mean squared error and its root."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.metrics import Metric, Rows, metrics
from peftkit.metrics.rows import value_rows

if TYPE_CHECKING:
    import numpy as np


@metrics.register("mse")
class MeanSquaredError(Metric):
    """Mean of the squared differences; smaller is better."""

    @property
    def greater_is_better(self) -> bool:
        """An error: the smallest is best."""
        return False

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`."""
        from sklearn.metrics import mean_squared_error

        predicted, actual = value_rows(predictions, references, metric=self.name)
        return {self.score_name: float(mean_squared_error(actual, predicted))}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        return {self.score_name: _squared_errors(predictions, references, counts)}


@metrics.register("rmse")
class RootMeanSquaredError(Metric):
    """Root of the mean squared difference, in the unit of the references; smaller is better."""

    @property
    def greater_is_better(self) -> bool:
        """An error: the smallest is best."""
        return False

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`."""
        from sklearn.metrics import root_mean_squared_error

        predicted, actual = value_rows(predictions, references, metric=self.name)
        return {self.score_name: float(root_mean_squared_error(actual, predicted))}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        import numpy as np

        return {self.score_name: np.sqrt(_squared_errors(predictions, references, counts))}


def _squared_errors(predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> np.ndarray:
    import numpy as np

    squares = np.square(predictions.astype(np.float64) - references.astype(np.float64))
    means: np.ndarray = counts @ squares / counts.sum(axis=1)
    return means
