"""Matthews correlation coefficient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.errors import DataError
from peftkit.metrics import Metric, Rows, metrics
from peftkit.metrics.rows import class_rows

if TYPE_CHECKING:
    import numpy as np


@metrics.register("matthews_correlation")
class MatthewsCorrelation(Metric):
    """Correlation of predicted and actual classes, -1 to 1; 0 for a guess or for always the same class."""

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`. R_K of Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006."""
        import numpy as np
        from sklearn.metrics import matthews_corrcoef

        predicted, actual = class_rows(predictions, references, metric=self.name)
        if actual.ndim == 2:
            raise DataError(
                f"the metric {self.name!r} compares one class per row, but the rows have {actual.shape[1]} labels; "
                "use f1_micro, f1_macro or accuracy"
            )
        if np.ptp(predicted) == 0 or np.ptp(actual) == 0:
            return {self.score_name: 0.0}  # by definition; scikit-learn would warn of a single class
        return {self.score_name: float(matthews_corrcoef(actual, predicted))}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        import numpy as np

        classes = np.union1d(predictions, references)
        rows = counts.sum(axis=1).astype(float)
        right = counts @ (predictions == references)
        predicted = counts @ (predictions[:, None] == classes).astype(float)
        actual = counts @ (references[:, None] == classes).astype(float)
        covariance = right * rows - (predicted * actual).sum(axis=1)
        spread = (rows**2 - (predicted**2).sum(axis=1)) * (rows**2 - (actual**2).sum(axis=1))
        return {self.score_name: np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)}
