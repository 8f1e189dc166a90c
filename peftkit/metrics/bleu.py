"""BLEU and chrF, computed by sacreBLEU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from peftkit.metrics import Rows, metrics
from peftkit.metrics.text_rows import TextMetric, text_rows

if TYPE_CHECKING:
    import numpy as np


class CorpusMetric(TextMetric):
    """A score of the whole corpus, from counts that are summed over its rows."""

    def scorer(self) -> Any:
        """sacreBLEU's metric."""
        raise NotImplementedError

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`; 0 to 100."""
        texts, right = text_rows(predictions, references, metric=self.name)
        return {self.score_name: float(self.scorer().corpus_score(texts, _streams(right)).score)}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.resampled`."""
        import numpy as np

        texts, right = text_rows(predictions, references, metric=self.name)
        scorer = self.scorer()
        # The counts of each row, as sacreBLEU's own bootstrap uses them.
        statistics = np.array(scorer._extract_corpus_statistics(texts, _streams(right)))
        scores = [scorer._compute_score_from_stats(total.tolist()).score for total in counts @ statistics]
        return {self.score_name: np.array(scores)}


def _streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """One list for each place in the rows' lists of right texts, None where a row has fewer."""
    most = max(map(len, references))
    return [[row[place] if place < len(row) else None for row in references] for place in range(most)]


@metrics.register("bleu")
class Bleu(CorpusMetric):
    """Corpus BLEU, 0 to 100.

    Papineni et al. 2002; Post 2018, arXiv:1804.08771.
    """

    tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a"
    """sacreBLEU's tokenizer; zh for Chinese, char for other texts without spaces."""
    lowercase: bool = False
    """Whether case does not count."""

    def scorer(self) -> Any:
        """See `CorpusMetric.scorer`."""
        from sacrebleu.metrics import BLEU

        return BLEU(tokenize=self.tokenize, lowercase=self.lowercase)


@metrics.register("chrf")
class ChrF(CorpusMetric):
    """Corpus chrF, 0 to 100: F-score of shared character sequences.

    Popovic 2015; 2017 for chrF++.
    """

    word_order: int = Field(0, ge=0, le=2)
    """Longest sequence of words that counts too; 2: chrF++."""

    def scorer(self) -> Any:
        """See `CorpusMetric.scorer`."""
        from sacrebleu.metrics import CHRF

        return CHRF(word_order=self.word_order)
