"""A reward for a length."""

from __future__ import annotations

from pydantic import Field

from peftkit.rewards import Reward, rewards


@rewards.register("length")
class Length(Reward):
    """1 for a text of exactly so many words, and less in proportion to how far it is off; at least 0."""

    words: int = Field(ge=1)
    """Words between spaces."""

    def of(self, text: str, answer: str | None) -> float:
        """See `Reward.of`."""
        return max(0.0, 1 - abs(len(text.split()) - self.words) / self.words)
