"""Which word each token belongs to, for any tokenizer that knows the characters of its tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from peftkit.errors import CapabilityError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Places = list[int | None]
"""Word of each token, None for special tokens."""
_STAND_IN = "?"


def encode_words(
    rows: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> tuple[dict[str, list[list[int]]], list[Places]]:
    """Tokens of rows of words, written with blanks between them; every word that fits has a token.

    A word that the tokenizer has nothing for, such as a zero-width mark, is read as an unknown one.

    Raises:
        CapabilityError: the tokenizer does not know the characters of its tokens.
    """
    if not tokenizer.is_fast:
        raise CapabilityError(
            f"{type(tokenizer).__name__} does not tell which characters its tokens stand for; use a model with a fast "
            "tokenizer (tokenizer.json)"
        )
    encoded, places = _encode(rows, tokenizer, max_length)
    for row, words in enumerate(rows):
        there = {word for word in places[row] if word is not None}
        is_cut = len(places[row]) >= max_length
        absent = set(range(max(there, default=-1) + 1 if is_cut else len(words))) - there
        if absent:
            stand_in = str(tokenizer.unk_token or _STAND_IN)
            again = [stand_in if word in absent else text for word, text in enumerate(words)]
            once, (places[row],) = _encode([again], tokenizer, max_length)
            for name, cells in once.items():
                encoded[name][row] = cells[0]
    return encoded, places


def _encode(
    rows: Sequence[Sequence[str]], tokenizer: Any, max_length: int
) -> tuple[dict[str, list[list[int]]], list[Places]]:
    texts = [" ".join(words) for words in rows]
    encoded = dict(tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True))
    offsets = encoded.pop("offset_mapping")
    places = []
    for words, text, spans in zip(rows, texts, offsets, strict=True):
        starts = [0, *accumulate(len(word) + 1 for word in words)]
        places.append([_word(span, text, starts) for span in spans])
    return encoded, places


def _word(span: tuple[int, int], text: str, starts: Sequence[int]) -> int | None:
    start, stop = span
    while start < stop and text[start] == " ":  # some tokenizers count the blank before a word as its part
        start += 1
    return None if start >= stop else bisect_right(starts, start) - 1
