"""Segments: stretches of whole sentences that follow each other in a text, and what is said of pairs of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from peftkit.errors import DataError
from peftkit.tasks.documents import Frame, tokenized
from peftkit.tasks.language_model import PROMPT

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PROMPT_PAIR = "prompt_pair"
"""Column of the second text of a pair that an application asks about."""


def segmented(rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, size: int) -> list[list[np.ndarray]]:
    """Every text as two or more segments of at most `size` tokens; each (length, 3), see `tokenized`.

    Raises:
        DataError: a text of one token.
    """
    documents = tokenized(rows, tokenizer, sentences=True)
    if short := [row for row, document in enumerate(documents) if len(document) < 2]:
        raise DataError(f"row {short[0]}: the text is a single token, which cannot be parted; remove the row")
    return [segments(document, size) for document in documents]


def segments(document: np.ndarray, size: int) -> list[np.ndarray]:
    """As many whole sentences together as fit into `size` tokens; a longer sentence is cut.

    A text that is one such segment is parted between sentences, as near to its middle as can be, or in its middle.
    """
    import numpy as np

    ends = np.flatnonzero(np.diff(document[:, 2])) + 1
    cuts, before = [0], 0
    for end in [*ends.tolist(), len(document)]:
        if end - cuts[-1] > size:
            cuts += [before] if before > cuts[-1] else []
            cuts += range(cuts[-1] + size, end, size)
        before = end
    if len(cuts) == 1:
        middle = len(document) / 2
        cuts.append(min(ends.tolist(), key=lambda place: abs(place - middle), default=len(document) // 2))
    return np.split(document, cuts[1:])


def pairs(parts: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
    """Places of neighbours, so that every segment is in one pair; of an odd number the last but one is in two."""
    last = len(parts) - 1
    for first in range(0, len(parts), 2):
        first = min(first, last - 1)
        yield first, first + 1


def asked_pairs(inputs: Sequence[Any]) -> Dataset:
    """Pairs of texts that an application asks about, as rows.

    Raises:
        DataError: an input of another shape, with its position.
    """
    from datasets import Dataset

    if isinstance(inputs, (str, Mapping)):
        raise DataError(f"the inputs are {inputs!r}; give a list of pairs of texts, even for one")
    parsed = [(pair.get("text"), pair.get("text_pair")) if isinstance(pair, Mapping) else pair for pair in inputs]
    for position, pair in enumerate(parsed):
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise DataError(
                f"input {position} is {inputs[position]!r}; give a pair of strings, or a mapping with 'text' and "
                "'text_pair'"
            )
    return Dataset.from_dict({PROMPT: [one for one, _ in parsed], PROMPT_PAIR: [two for _, two in parsed]})


def encoded_pairs(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[dict[str, Any]]:
    """Features of `asked_pairs`; of a pair that is too long each text loses its end."""
    frame = Frame.of(tokenizer, texts=2)
    size = frame.room(max_length)
    texts = [tokenized(rows.rename_columns({column: "text"}), tokenizer) for column in (PROMPT, PROMPT_PAIR)]
    return [frame.around(*(text[:size, 0].tolist() for text in pair)) for pair in zip(*texts, strict=True)]


def single_words(rows: Dataset) -> dict[int, str]:
    """What is wrong with texts that cannot be parted; see `Task.row_problems`."""
    return {
        row: f"the text {text!r} is a single word, which cannot be parted into two segments"
        for row, text in enumerate(rows["text"])
        if len(text.split()) < 2
    }


def probabilities(logits: Sequence[Any]) -> np.ndarray:
    """(rows, 2) of logits (2,) each."""
    import numpy as np

    stacked = np.asarray(logits, np.float64).reshape(-1, 2)
    exponents = np.exp(stacked - stacked.max(axis=1, keepdims=True))
    softmax: np.ndarray = exponents / exponents.sum(axis=1, keepdims=True)
    return softmax


def named(logits: Sequence[Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """label, probability and both probabilities of each row, for an application."""
    answers = []
    for row in probabilities(logits):
        best = int(row.argmax())
        both = dict(zip(names, row.tolist(), strict=True))
        answers.append({"label": names[best], "probability": both[names[best]], "probabilities": both})
    return answers
