"""Rewards: numbers for generated answers, by which a model learns to answer."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from peftkit.registry import Component, Registry


class Reward(Component):
    """A number for an answer; higher is better."""

    needs_answer: ClassVar[bool] = False
    """Whether it compares with the right answer, so that the rows must have one."""

    weight: float = Field(1.0, gt=0)
    """Of this reward in the sum of all."""

    def of(self, text: str, answer: str | None) -> float:
        """The reward, before it is weighed.

        Args:
            text: generated.
            answer: that is right, where the row has one.
        """
        raise NotImplementedError


rewards: Registry[Reward] = Registry("peftkit.rewards", "reward")
