"""Easy data augmentation: small random edits of the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from peftkit.augmentations import Augmentation, Rewriting, augmentations

Edit = Literal["synonym", "insertion", "swap", "deletion"]


@augmentations.register("eda")
class Eda(Augmentation):
    """Replaces words by synonyms, inserts, swaps or deletes words: one kind of edit for each copy, drawn at random.

    Wei & Zou 2019, arXiv:1901.11196, section 2. Synonyms are those of the recipe alone, as there is no WordNet here: a
    text in which none of its words stands is not edited by them, and without any, words of the text itself are
    inserted. Words are what stands between blanks.
    """

    paper: ClassVar[str] = "Wei & Zou 2019, arXiv:1901.11196"

    share: float = Field(0.1, gt=0.0, lt=1.0)
    """Share of the words that are edited, at least one; the probability of each to be deleted. The paper's alpha."""
    edits: tuple[Edit, ...] = Field(("synonym", "insertion", "swap", "deletion"), min_length=1)
    """Kinds of edits to draw from; synonym only where there are `synonyms`."""
    synonyms: Mapping[str, tuple[str, ...]] = {}
    """Words, in lower case, with the words that can stand for them: {good: [fine, decent]}."""

    @field_validator("synonyms")
    @classmethod
    def _lower_case_with_something(cls, synonyms: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
        for word, others in synonyms.items():
            if word != word.lower() or not others:
                raise ValueError(f"{word!r} has to be in lower case and to have at least one synonym; correct the list")
        return synonyms

    def rewrite(self, texts: Sequence[str], rewriting: Rewriting) -> list[str]:
        """See `Augmentation.rewrite`."""
        return [self._edited(text, rewriting.random(place)) for place, text in enumerate(texts)]

    def _edited(self, text: str, random: Random) -> str:
        words = text.split()
        if not words:
            return text
        edits = [edit for edit in self.edits if edit != "synonym" or self._known(words)]
        if not edits:
            return text
        kind = random.choice(edits)
        edit = {"synonym": self._replace, "insertion": self._insert, "swap": _swap, "deletion": self._delete}[kind]
        edited = edit(words, max(1, int(self.share * len(words))), random)
        return text if edited == words else " ".join(edited)

    def _known(self, words: Sequence[str]) -> list[int]:
        """Places of the words that have synonyms."""
        return [place for place, word in enumerate(words) if word.lower() in self.synonyms]

    def _replace(self, words: list[str], count: int, random: Random) -> list[str]:
        """`count` different words, each wherever it stands, by a synonym."""
        known = sorted({words[place].lower() for place in self._known(words)})
        chosen = {word: random.choice(self.synonyms[word]) for word in random.sample(known, min(count, len(known)))}
        return [chosen.get(word.lower(), word) for word in words]

    def _insert(self, words: list[str], count: int, random: Random) -> list[str]:
        """`count` times a synonym of one of the words, or without any one of the words, at a random place."""
        edited = list(words)
        for _ in range(count):
            known = self._known(words)
            new = random.choice(self.synonyms[words[random.choice(known)].lower()] if known else words)
            edited.insert(random.randint(0, len(edited)), new)
        return edited

    def _delete(self, words: list[str], count: int, random: Random) -> list[str]:
        """Each word with probability `share`; one stays."""
        return [word for word in words if random.random() >= self.share] or [random.choice(words)]


def _swap(words: list[str], count: int, random: Random) -> list[str]:
    """`count` times two words at different places."""
    edited = list(words)
    for _ in range(count if len(words) > 1 else 0):
        one, other = random.sample(range(len(edited)), 2)
        edited[one], edited[other] = edited[other], edited[one]
    return edited
