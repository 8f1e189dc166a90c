"""How much of the default model each method trains: measured once and shipped, so that it is told without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

MODEL = "all-MiniLM-L6-v2"
"""The model that the shares are of (sentence-transformers/all-MiniLM-L6-v2: BERT, 6 blocks of width 384), with a head
for two classes."""
SHARES_FILE = Path(__file__).with_name("trainable_shares.json")


@dataclass(frozen=True)
class Share:
    """What trains of a tuned model, the new head included.

    Args:
        trainable: parameters that train.
        total: all parameters, those that the method has added included.
    """

    trainable: int
    total: int

    def __str__(self) -> str:
        """In percent with two significant digits: 1.8 %."""
        percent = 100 * self.trainable / self.total
        return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:#.2g} %"


def share_of(name: str) -> Share | None:
    """What a method trains of the default model with its default options.

    Returns:
        None for methods that have no default options for all of them, or that are not peftkit's own.
    """
    return _shares().get(name)


@cache
def _shares() -> dict[str, Share]:
    counts = json.loads(SHARES_FILE.read_text("utf-8"))
    return {name: Share(**found) for name, found in counts.items()}
