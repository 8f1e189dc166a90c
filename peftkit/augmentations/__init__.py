"""Augmentations: rewritten copies of training rows, made before anything is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from pydantic import Field

from peftkit.registry import Component, Registry


@dataclass(frozen=True)
class Rewriting:
    """What an augmentation may know of the run.

    Args:
        seed: of the recipe and of the augmentation's place in it.
        model: locator of the base model.
        revision: of the base model on the hub.
    """

    seed: str
    model: str
    revision: str | None = None

    def random(self, place: int) -> Random:
        """What the text at a place is rewritten with; the same in every process."""
        return Random(f"{self.seed}/{place}")


class Augmentation(Component):
    """A way to rewrite texts so that their label stays right, most of the time."""

    paper: ClassVar[str] = ""
    """Where it comes from: authors, year, arXiv number."""

    copies: int = Field(1, ge=1)
    """Rewritten copies of each training row; the row itself stays."""

    def rewrite(self, texts: Sequence[str], rewriting: Rewriting) -> list[str]:
        """Each text in other words, once; a text that cannot be rewritten comes back as it is.

        Raises:
            CapabilityError: what rewrites cannot be had here.
        """
        raise NotImplementedError


augmentations: Registry[Augmentation] = Registry("peftkit.augmentations", "augmentation")
