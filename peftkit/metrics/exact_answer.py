"""Accuracy of the answer that a generated text comes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from peftkit.answers import answer_in, pattern_problem
from peftkit.metrics import metrics
from peftkit.metrics.text_rows import MeanTextMetric

if TYPE_CHECKING:
    import numpy as np


@metrics.register("exact_answer")
class ExactAnswer(MeanTextMetric):
    """Share of texts whose answer is right: what `pattern` finds last, or else the last number.

    Numbers are compared as numbers: 1,200 is 1200.0. GSM8K writes its answers behind ####. (Cobbe et al. 2021,
    arXiv:2110.14168)
    """

    pattern: str | None = None
    """Regular expression with one group, the answer; none: the last number."""
    whole: bool = False
    """Compare whole texts instead, but for spaces around them."""

    @model_validator(mode="after")
    def _pattern_fits(self) -> Self:
        if self.pattern is None:
            return self
        if self.whole:
            raise ValueError("whole compares whole texts, pattern a part of them; remove one")
        if problem := pattern_problem(self.pattern, groups=1):
            raise ValueError(problem)
        return self

    def values(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """See `MeanTextMetric.values`."""
        import numpy as np

        right = []
        for text, texts in zip(predictions, references, strict=True):
            answer = self.answer(text)
            right.append([answer is not None and answer in {self.answer(other) for other in texts}])
        return np.array(right, np.float64)

    def answer(self, text: str) -> str | None:
        """The answer that a text comes to, or None."""
        return text.strip() if self.whole else answer_in(text, self.pattern)
