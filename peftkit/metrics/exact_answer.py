"""Accuracy of the answer that a generated text comes to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from peftkit.metrics import metrics
from peftkit.metrics.text_rows import MeanTextMetric

if TYPE_CHECKING:
    import numpy as np

_NUMBER = re.compile(r"(?:(?<!\d)-)?\d[\d,]*(?:\.\d+)?")
"""The 3 of 10-3 is not negative."""


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
        try:
            groups = re.compile(self.pattern).groups
        except re.error as problem:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {problem}") from problem
        if groups != 1:
            raise ValueError(f"pattern {self.pattern!r} has {groups} groups; put the answer, and nothing else, in ( )")
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
        if self.whole:
            return text.strip()
        found = re.findall(self.pattern or _NUMBER, text)
        return _as_number(found[-1].strip()) if found else None


def _as_number(text: str) -> str:
    if not _NUMBER.fullmatch(text.rstrip(".")):
        return text
    number = float(text.rstrip(".").replace(",", ""))
    return str(int(number)) if number.is_integer() else repr(number)
