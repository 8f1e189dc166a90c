"""Running text as tokens: documents, the blocks they are cut into, and the special tokens around them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.errors import DataError
from peftkit.labels import IGNORED
from peftkit.tasks import ROW
from peftkit.tasks.padding import padded

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_BATCH = 1000
_SENTENCE_END = re.compile(r"[.!?]+['\")\]]*(?=\s)|\n+")


@dataclass(frozen=True)
class Block:
    """A piece of running text.

    Args:
        tokens: (length, columns) int64; the first column holds the ids.
        row: in which it begins.
    """

    tokens: np.ndarray
    row: int


def cut(documents: Sequence[np.ndarray], size: int, *, pack: bool) -> list[Block]:
    """Pieces of `size` tokens, in order, with nothing left out; the last one may be shorter.

    Args:
        documents: (length, columns) each.
        pack: cut all documents as one text; else each by itself, so that each may end in a shorter piece.
    """
    import numpy as np

    if not pack:
        return [
            Block(document[start : start + size], row)
            for row, document in enumerate(documents)
            for start in range(0, len(document), size)
        ]
    text = np.concatenate(documents)
    ends = np.cumsum([len(document) for document in documents])
    starts = np.arange(0, len(text), size)
    rows = np.searchsorted(ends, starts, side="right").tolist()
    return [Block(text[start : start + size], row) for start, row in zip(starts.tolist(), rows, strict=True)]


def separated(documents: Sequence[np.ndarray], token: int) -> list[np.ndarray]:
    """Documents with a token behind each but the last, whose block is closed by one anyway."""
    import numpy as np

    return [np.concatenate([document, [[token, -1, 0]]]) for document in documents[:-1]] + [*documents[-1:]]


def tokenized(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, special: bool = False, sentences: bool = False
) -> list[np.ndarray]:
    """Every text whole, as (length, 3): ids, and the numbers of the word and the sentence that a token is of.

    Args:
        special: whether with the special tokens that the tokenizer puts around a text; they are of word -1.
        sentences: whether to tell sentences apart; without, all tokens are of sentence 0.
    """
    import numpy as np

    documents = []
    for batch in rows.select_columns(["text"]).iter(_BATCH):
        encoded = tokenizer(
            batch["text"],
            add_special_tokens=special,
            return_attention_mask=False,
            return_offsets_mapping=sentences,
            verbose=False,
        )
        for place, (text, ids) in enumerate(zip(batch["text"], encoded["input_ids"], strict=True)):
            words = [-1 if word is None else word for word in encoded.word_ids(place)]
            of = _sentences(text, encoded["offset_mapping"][place]) if sentences else np.zeros(len(ids))
            documents.append(np.stack([ids, words, of], axis=1).astype(np.int64))
    return documents


def _sentences(text: str, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """The number of the sentence that each token ends in, given where tokens begin and end in the text."""
    import numpy as np

    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return np.searchsorted(ends, [end for _, end in spans], side="left")


@dataclass(frozen=True)
class Frame:
    """The special tokens that a tokenizer puts before, between and after texts, and the segments they belong to.

    Args:
        pieces: ids before the first text, behind it, and so on: one piece more than texts.
        types: token type of each piece, and of each text between them.
    """

    pieces: tuple[tuple[int, ...], ...]
    types: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, texts: int) -> Frame:
        """The frame around one text, or around two.

        Raises:
            DataError: the tokenizer cannot tell its special tokens from the text.
        """
        if not tokenizer.is_fast:
            raise DataError(f"{type(tokenizer).__name__} has no fast form, which this task needs; take another base")
        encoded = tokenizer(*["a"] * texts, return_token_type_ids=True)
        owners: list[int | None] = encoded.sequence_ids(0)
        pieces: list[list[int]] = [[]]
        types: list[int] = [0]
        owner: int | None = None
        for now, token, kind in zip(owners, encoded["input_ids"], encoded["token_type_ids"], strict=True):
            if now is not None and now != owner:
                types += [kind, kind]
                pieces.append([])
            if now is None:
                pieces[-1].append(token)
                types[-1] = kind
            owner = now
        return cls(tuple(map(tuple, pieces)), tuple(types))

    def around(self, *texts: Sequence[int]) -> dict[str, list[int]]:
        """One feature: ids, token types, attention mask."""
        parts = [self.pieces[0]]
        for text, piece in zip(texts, self.pieces[1:], strict=True):
            parts += [tuple(text), piece]
        ids = [token for part in parts for token in part]
        types = [kind for part, kind in zip(parts, self.types, strict=True) for _ in part]
        return {"input_ids": ids, "token_type_ids": types, "attention_mask": [1] * len(ids)}

    def room(self, max_length: int) -> int:
        """Tokens that each text may have within `max_length`.

        Raises:
            DataError: none.
        """
        special, texts = sum(map(len, self.pieces)), len(self.pieces) - 1
        if max_length < special + texts:
            raise DataError(
                f"model.max_length is {max_length}, and special tokens alone take {special}; raise it to "
                f"{special + texts} or more"
            )
        return (max_length - special) // texts


def batch_of(
    features: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    lists: Sequence[str],
    *,
    numbers: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Columns of features as tensors, and `ROW`; token types only where the model knows them.

    Args:
        lists: columns that are filled up on the right; they may be absent.
        numbers: columns of one number each; they may be absent.
    """
    fill = dict.fromkeys(lists, 0) | {"input_ids": tokenizer.pad_token_id}
    fill |= {"labels": IGNORED} if "labels" in lists else {}
    if "token_type_ids" not in tokenizer.model_input_names:
        fill.pop("token_type_ids", None)
    wanted = (*fill, *numbers, ROW)
    return padded([{name: feature[name] for name in wanted if name in feature} for feature in features], fill)
