"""Words replaced by what a masked language model would write in their place."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.augmentations import Augmentation, Rewriting, augmentations

if TYPE_CHECKING:
    from torch import Tensor

_WORD = re.compile(r"\w+")
_OPTION = "augmentations: {name: masked_tokens, model: ...}"


@augmentations.register("masked_tokens")
class MaskedTokens(Augmentation):
    """Masks a share of the words and puts samples of a masked language model's predictions in their place.

    Wu et al. 2019, arXiv:1812.06705, without the label as a condition: a word that carries the label can turn into its
    opposite, so keep `share` small. Words are runs of letters and digits; what stands between them stays. A word of
    several tokens is masked, and replaced, by one.
    """

    paper: ClassVar[str] = "Wu et al. 2019, arXiv:1812.06705"

    share: float = Field(0.15, gt=0.0, le=1.0)
    """Share of the words that are replaced, at least one."""
    model: str | None = None
    """Masked language model: hub id or folder; none: the base model, if it was saved with its head."""
    batch_size: int = Field(32, ge=1)
    """Texts per pass of the model."""

    def rewrite(self, texts: Sequence[str], rewriting: Rewriting) -> list[str]:
        """See `Augmentation.rewrite`."""
        from peftkit.augmentations.models import load_model

        revision = rewriting.revision if self.model is None else None
        model, tokenizer = load_model(
            "AutoModelForMaskedLM", self.model or rewriting.model, revision=revision, option=_OPTION
        )
        writer = _Writer(model, tokenizer)
        rewritten: list[str] = []
        for start in range(0, len(texts), self.batch_size):
            batch = texts[start : start + self.batch_size]
            randoms = [rewriting.random(start + place) for place in range(len(batch))]
            chosen = [self._chosen(text, random) for text, random in zip(batch, randoms, strict=True)]
            rewritten += writer.filled(batch, chosen, randoms)
        return rewritten

    def _chosen(self, text: str, random: Random) -> list[tuple[int, int]]:
        """Start and end of the words to be replaced, in order."""
        words = [match.span() for match in _WORD.finditer(text)]
        return sorted(random.sample(words, min(len(words), max(1, int(self.share * len(words))))))


class _Writer:
    """Writes single words where a text is masked."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        import torch

        self.model = model
        self.tokenizer = tokenizer
        self.continues = any(token.startswith("##") for token in tokenizer.get_vocab())
        """Whether the vocabulary marks the tokens that go on with a word, instead of those that begin one."""
        self.words = {token: word for token in range(len(tokenizer)) if (word := self._word(token))}
        self.banned = torch.ones(model.config.vocab_size, dtype=torch.bool)
        self.banned[list(self.words)] = False

    def _word(self, token: int) -> str | None:
        """A token as a word of its own, or None if it is none."""
        written = self.tokenizer.convert_ids_to_tokens(token)
        word: str = self.tokenizer.decode([token]).strip()
        begins = not written.startswith("##") if self.continues else written[:1] in ("\u0120", "\u2581")
        return word if begins and word.isalnum() and token not in self.tokenizer.all_special_ids else None

    def filled(
        self, texts: Sequence[str], chosen: Sequence[Sequence[tuple[int, int]]], randoms: Sequence[Random]
    ) -> list[str]:
        """Texts with new words at the chosen places; those beyond the model's longest input stay."""
        import torch

        masked = [
            _replaced(text, spans, [self.tokenizer.mask_token] * len(spans))
            for text, spans in zip(texts, chosen, strict=True)
        ]
        length = self.model.config.max_position_embeddings - 2  # RoBERTa counts from 2
        inputs = self.tokenizer(masked, return_tensors="pt", padding=True, truncation=True, max_length=length)
        with torch.no_grad():
            logits = self.model(**inputs.to(self.model.device)).logits.float().cpu()
        holes = inputs["input_ids"].cpu() == self.tokenizer.mask_token_id
        return [
            _replaced(text, spans, list(self._words(logits[row][holes[row]], randoms[row])))
            for row, (text, spans) in enumerate(zip(texts, chosen, strict=True))
        ]

    def _words(self, logits: Tensor, random: Random) -> Iterator[str]:
        """A sample for each mask, of logits (masks, vocabulary)."""
        for shares in logits.masked_fill(self.banned, float("-inf")).softmax(dim=1).cumsum(dim=1):
            place = int((shares < random.random() * float(shares[-1])).sum())
            yield self.words[place]


def _replaced(text: str, spans: Sequence[tuple[int, int]], words: Sequence[str]) -> str:
    """`text` with the first of `spans` replaced by `words`."""
    for (start, end), word in reversed(list(zip(spans, words, strict=False))):
        text = text[:start] + word + text[end:]
    return text
