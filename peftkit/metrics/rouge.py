"""ROUGE, computed by the rouge-score library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftkit.metrics import metrics
from peftkit.metrics.text_rows import MeanTextMetric

if TYPE_CHECKING:
    import numpy as np

_KINDS = {"rouge_l": "rougeL", "rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_lsum": "rougeLsum"}


@metrics.register("rouge")
class Rouge(MeanTextMetric):
    """Mean F1 of shared word sequences.

    The longest (rouge_l), single words (rouge_1), pairs (rouge_2), and the longest per line (rouge_lsum). Of several
    right texts the best counts, score by score. (Lin 2004)

    English words and digits only: the library drops everything but a-z and 0-9.
    """

    use_stemmer: bool = False
    """Compare word stems (Porter), as many papers on summarization do."""

    @property
    def score_name(self) -> str:
        """rouge_l."""
        return next(iter(_KINDS))

    def names(self) -> tuple[str, ...]:
        """rouge_l, rouge_1, rouge_2, rouge_lsum."""
        return tuple(_KINDS)

    def values(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """See `MeanTextMetric.values`."""
        import numpy as np
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(_KINDS.values()), use_stemmer=self.use_stemmer)
        rows = []
        for text, right in zip(predictions, references, strict=True):
            best = scorer.score_multi(right, text)
            rows.append([best[kind].fmeasure for kind in _KINDS.values()])
        return np.array(rows)
