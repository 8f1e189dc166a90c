"""A reward for a form."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, model_validator

from peftkit.answers import pattern_problem
from peftkit.rewards import Reward, rewards


@rewards.register("regex")
class Regex(Reward):
    """1 where a regular expression is found in the text, else 0."""

    pattern: str = Field(min_length=1)
    """Of Python's `re`; . does not match a line break."""
    whole: bool = False
    """The expression has to match the whole text."""

    @model_validator(mode="after")
    def _pattern_fits(self) -> Self:
        if problem := pattern_problem(self.pattern):
            raise ValueError(problem)
        return self

    def of(self, text: str, answer: str | None) -> float:
        """See `Reward.of`."""
        found = re.fullmatch(self.pattern, text) if self.whole else re.search(self.pattern, text)
        return float(found is not None)
