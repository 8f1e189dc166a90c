"""How high a search puts what is right: from the rank of each query's right passage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from peftkit.errors import DataError
from peftkit.metrics import Metric, Rows, metrics

if TYPE_CHECKING:
    import numpy as np


class RankMetric(Metric):
    """A mean of a function of ranks, which begin at 1; the references are all 1, the best rank there is."""

    def values(self, ranks: np.ndarray) -> np.ndarray:
        """(rows,) of ranks (rows,)."""
        raise NotImplementedError

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`."""
        import numpy as np

        ranks = np.asarray(predictions)
        if ranks.ndim != 1 or not len(ranks) or (ranks < 1).any() or (ranks != np.round(ranks)).any():
            raise DataError(
                f"the metric {self.name!r} measures ranks from 1 on, one per query; it is for sentence_embedding with "
                "pairs of texts"
            )
        return {self.score_name: float(self.values(ranks).mean())}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        return {self.score_name: counts @ self.values(predictions) / counts.sum(axis=1)}


@metrics.register("recall_at_k")
class RecallAtK(RankMetric):
    """Share of queries whose right passage is among the first k."""

    k: int = Field(10, ge=1)
    """How many passages are looked at."""

    @property
    def score_name(self) -> str:
        """recall_at_10."""
        return f"recall_at_{self.k}"

    def values(self, ranks: np.ndarray) -> np.ndarray:
        """See `RankMetric.values`."""
        return ranks <= self.k


@metrics.register("mean_reciprocal_rank")
class MeanReciprocalRank(RankMetric):
    """Mean of 1 / rank of the right passage.

    Voorhees 1999.
    """

    def values(self, ranks: np.ndarray) -> np.ndarray:
        """See `RankMetric.values`."""
        import numpy as np

        values: np.ndarray = 1 / ranks.astype(np.float64)
        return values


@metrics.register("ndcg_at_k")
class NDCGAtK(RankMetric):
    """Normalised discounted cumulative gain.

    1 / log2(1 + rank) where the right passage is among the first k, else 0. (Järvelin & Kekäläinen 2002)
    """

    k: int = Field(10, ge=1)
    """How many passages are looked at."""

    @property
    def score_name(self) -> str:
        """ndcg_at_10."""
        return f"ndcg_at_{self.k}"

    def values(self, ranks: np.ndarray) -> np.ndarray:
        """See `RankMetric.values`."""
        import numpy as np

        values: np.ndarray = (ranks <= self.k) / np.log2(1 + ranks)
        return values
