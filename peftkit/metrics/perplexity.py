"""What a language model makes of held-out tokens: perplexity and token accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from peftkit.errors import DataError
from peftkit.metrics import Metric, Rows, metrics

if TYPE_CHECKING:
    import numpy as np


class LikelihoodMetric(Metric):
    """A function of the summed likelihoods of tokens."""

    measures: ClassVar[Literal["answers", "likelihood", "margins", "rewards"]] = "likelihood"
    measured: ClassVar[str] = "likelihoods of tokens"

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`; predictions (rows, 3) as in `tasks.Scored.likelihood`."""
        import numpy as np

        totals = np.asarray(predictions, np.float64).sum(axis=0)
        if not len(predictions) or not totals[1]:
            raise DataError(f"the metric {self.name!r} got no tokens to predict; a split that is scored needs some")
        return {self.score_name: float(self.of_totals(totals[None])[0])}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        return {self.score_name: self.of_totals(counts @ predictions)}

    def of_totals(self, totals: np.ndarray) -> np.ndarray:
        """Scores (resamples,) of sums (resamples, 3) of negative log-likelihood, tokens, and tokens guessed right."""
        raise NotImplementedError


@metrics.register("perplexity")
class Perplexity(LikelihoodMetric):
    """exp of the mean negative log-likelihood of the tokens to be predicted; for masked models of the masked ones."""

    @property
    def greater_is_better(self) -> bool:
        """No."""
        return False

    def of_totals(self, totals: np.ndarray) -> np.ndarray:
        """See `LikelihoodMetric.of_totals`."""
        import numpy as np

        perplexity: np.ndarray = np.exp(totals[:, 0] / np.maximum(totals[:, 1], 1))
        return perplexity


@metrics.register("token_accuracy")
class TokenAccuracy(LikelihoodMetric):
    """Share of the tokens to be predicted that are the model's first choice."""

    def of_totals(self, totals: np.ndarray) -> np.ndarray:
        """See `LikelihoodMetric.of_totals`."""
        import numpy as np

        share: np.ndarray = totals[:, 2] / np.maximum(totals[:, 1], 1)
        return share
