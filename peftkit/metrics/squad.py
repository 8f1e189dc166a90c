"""Scores of answers to questions, as the evaluation script of SQuAD has them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from peftkit.metrics import metrics
from peftkit.metrics.text_rows import MeanTextMetric

if TYPE_CHECKING:
    import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_EASTERN = r"\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
_PIECES = re.compile(rf"[{_EASTERN}]|[^\s{_EASTERN}]+")


@metrics.register("squad")
class Squad(MeanTextMetric):
    """Mean F1 of shared words and share of exact matches; of several right answers the best counts.

    Case, punctuation and English articles do not count. An answer without words is right only where none is expected;
    of the right answers those count that have words, if any.
    (Rajpurkar et al. 2016, arXiv:1606.05250; 2018, arXiv:1806.03822)
    """

    unit: Literal["words", "characters"] = "words"
    """What F1 counts; characters: each of Chinese, Japanese and Korean by itself, for texts without spaces."""

    @property
    def score_name(self) -> str:
        """squad_f1."""
        return "squad_f1"

    def names(self) -> tuple[str, ...]:
        """squad_f1, exact_match."""
        return ("squad_f1", "exact_match")

    def values(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """See `MeanTextMetric.values`."""
        import numpy as np

        return np.array(
            [
                [max(self._f1(text, right) for right in answers), max(self._exact(text, right) for right in answers)]
                for text, answers in zip(predictions, map(_wordy, references), strict=True)
            ],
            np.float64,
        )

    def _exact(self, text: str, right: str) -> bool:
        return normalized(text) == normalized(right)

    def _f1(self, text: str, right: str) -> float:
        one, two = self._pieces(text), self._pieces(right)
        if not one or not two:
            return float(one == two)
        shared = sum((Counter(one) & Counter(two)).values())
        return 2 * shared / (len(one) + len(two))

    def _pieces(self, text: str) -> list[str]:
        plain = normalized(text)
        return plain.split() if self.unit == "words" else _PIECES.findall(plain)


def _wordy(answers: Sequence[str]) -> Sequence[str]:
    """The answers of which the rules leave a word, or none if there is no such."""
    return [text for text in answers if normalized(text)] or [""]


def normalized(text: str) -> str:
    """Lower case, without punctuation and English articles, one blank between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
