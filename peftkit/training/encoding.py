"""Rows as features, tokenized once: kept on disk by all that they are made of, and mapped from there."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

import peftkit.tasks
from peftkit.artifacts.encodings import find_encoding, keep_encoding
from peftkit.artifacts.notices import tell
from peftkit.data.fingerprint import fingerprint
from peftkit.data.progress_bars import hidden_progress_bars
from peftkit.errors import ArtifactError
from peftkit.tasks import Task
from peftkit.tasks.columns import cell_lengths

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

_FORMAT = 1
"""Of what is kept; another one makes everything anew."""
_ROWS_WORTH_KEEPING = 100
_ROWS_WORTH_A_BAR = 50_000  # tokenizing them takes some seconds
_UNCUT = 2**30
_LENGTH = "__length__"
_TOKENIZER_SAYS = ("chat_template", "model_max_length", "padding_side", "special_tokens_map", "truncation_side")


@dataclass(frozen=True)
class Encoding:
    """Rows as features.

    Args:
        features: of `Task.encode`.
        lengths: (rows,) tokens of each row if none were cut; None where encoding cuts nothing off.
    """

    features: Dataset
    lengths: np.ndarray | None


class Encoder:
    """Makes the features of rows, for the data check and for training the same.

    Args:
        task: resolved.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._done: list[tuple[Dataset, Encoding]] = []

    def encode(self, rows: Dataset) -> Encoding:
        """Features of legal rows: those that were made before, in this process or another, or new ones."""
        for earlier, encoding in self._done:
            if earlier is rows:
                return encoding
        with _tokenizing_bar(len(rows)):
            encoding = self._found_or_made(rows)
        self._done.append((rows, encoding))
        return encoding

    def _found_or_made(self, rows: Dataset) -> Encoding:
        digest = self._digest(rows) if len(rows) >= _ROWS_WORTH_KEEPING else None
        if digest is None:
            return self._made(rows)
        folder = find_encoding(digest)
        if folder is None:
            made = self._made(rows)
            try:
                folder = keep_encoding(digest, lambda stage: _write(made, stage), size=made.features.data.nbytes)
            except ArtifactError as problem:
                tell(f"encoded rows are not kept: {problem}")
                return made
        return _read(folder)

    def _made(self, rows: Dataset) -> Encoding:
        task = self.task
        features = task.encode(rows, self.tokenizer, self.max_length)
        if not task.cut_columns:
            return Encoding(features, None)
        lengths = cell_lengths(features, task.cut_columns)
        # Whether rows of full length were cut is not to be seen.
        full = (lengths >= self.max_length).nonzero()[0]
        if len(full):
            whole = task.encode(rows.select(full), self.tokenizer, _UNCUT)
            lengths[full] = cell_lengths(whole, task.cut_columns)
        return Encoding(features, lengths)

    def _digest(self, rows: Dataset) -> str | None:
        """Of all that decides about the features; None where not all is known: plugins, tokenizers in Python."""
        said = _said_by(self.tokenizer)
        if said is None or not type(self.task).__module__.startswith("peftkit."):
            return None
        task = [type(self.task).__qualname__, self.task.model_dump(mode="json"), self.max_length]
        content = [fingerprint(rows), str(rows.features)]
        return hashlib.sha256(json.dumps([_program(), said, task, content], sort_keys=True).encode()).hexdigest()


def _tokenizing_bar(rows: int) -> AbstractContextManager[None]:
    """The datasets library's progress bar where there is something to wait for and a terminal to draw on."""
    worthwhile = rows >= _ROWS_WORTH_A_BAR and sys.stderr.isatty()
    return nullcontext() if worthwhile else hidden_progress_bars()


@cache
def _program() -> list[Any]:
    """The code that encodes: that of all tasks, and the libraries'."""
    sources = sorted(Path(peftkit.tasks.__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return [_FORMAT, digest, *(version(name) for name in ("datasets", "tokenizers", "transformers"))]


def _said_by(tokenizer: PreTrainedTokenizerBase) -> list[Any] | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    backend.no_truncation()  # what the last call has left
    backend.no_padding()
    return [type(tokenizer).__name__, backend.to_str(), *(str(getattr(tokenizer, name)) for name in _TOKENIZER_SAYS)]


def _write(encoding: Encoding, folder: Path) -> None:
    features = encoding.features
    if encoding.lengths is not None:
        features = features.add_column(_LENGTH, encoding.lengths)
    with hidden_progress_bars():
        features.save_to_disk(str(folder))


def _read(folder: Path) -> Encoding:
    features = datasets.load_from_disk(str(folder))
    if _LENGTH not in features.column_names:
        return Encoding(features, None)
    lengths = features.with_format("numpy")[_LENGTH][:]
    return Encoding(features.remove_columns(_LENGTH), lengths)
