"""A reward for the right answer."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from peftkit.answers import answer_in, pattern_problem
from peftkit.rewards import Reward, rewards


@rewards.register("exact_answer")
class ExactAnswer(Reward):
    """1 where the text comes to the row's answer, else 0; as the metric of that name has it."""

    needs_answer: ClassVar[bool] = True

    pattern: str | None = None
    """Regular expression with one group, the answer; none: the last number."""

    @model_validator(mode="after")
    def _pattern_fits(self) -> Self:
        if self.pattern is not None and (problem := pattern_problem(self.pattern, groups=1)):
            raise ValueError(problem)
        return self

    def of(self, text: str, answer: str | None) -> float:
        """See `Reward.of`."""
        found = answer_in(text, self.pattern)
        return float(found is not None and answer is not None and found == answer_in(answer, self.pattern))
