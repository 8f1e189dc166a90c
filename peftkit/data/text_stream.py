"""Text files that are read while training goes on: corpora larger than memory."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Literal

from pydantic import Field

from peftkit.data import ORIGIN, DataSource, LoadedData, RowStream, sources
from peftkit.data.files import find_files
from peftkit.data.reading import ReadingOptions
from peftkit.data.split_files import described, load_split_files
from peftkit.data.splitting import Selection
from peftkit.errors import DataError
from peftkit.results import ArtifactRecord

_BLOCK_BYTES = 1 << 20


@sources.register("text_stream")
class TextStream(DataSource):
    """Training rows of text files, read lazily, over and over, through a shuffle buffer; needs training.max_steps.
    Validation and test rows are read at once."""

    train: str | tuple[str, ...]
    """File or pattern (corpus/**/*.txt), or several, packed with gzip or not, read in the order of their names."""
    validation: str | tuple[str, ...] | None = None
    """As train."""
    test: str | tuple[str, ...] | None = None
    """As train."""
    text_rows: Literal["line", "paragraph"] = "paragraph"
    """What is one row: a line, or a block between blank lines. Blank lines are no rows."""
    encoding: str = "utf-8"
    """A byte-order mark is accepted and removed."""
    shuffle_buffer: int = Field(1000, ge=1)
    """Blocks that are held in memory, of which the next is drawn at random; 1: no shuffling."""
    checked_rows: int = Field(1000, ge=1)
    """Rows at the beginning of train that are checked before training; a tokenizer from scratch learns from these."""

    def read(self) -> LoadedData:
        """The first rows of train, whole validation and test splits, and the stream behind train.

        Raises:
            DataError: a file that is missing or cannot be read, with file and line.
        """
        from datasets import Dataset, DatasetDict

        files = tuple(Path(file.name) for pattern in _tuple(self.train) for file in find_files(pattern))
        rows = _Rows(files, self.text_rows, self.encoding)
        first = list(islice(rows(), self.checked_rows))
        if not first:
            raise DataError(f"{_shown(files)} holds only blank lines; write the rows to it, or name another file")
        splits = DatasetDict(
            train=Dataset.from_dict({"text": [text for text, _ in first], ORIGIN: [origin for _, origin in first]})
        )
        records = [ArtifactRecord(locator=str(file), origin="local", sha256=_sha256(file)) for file in files]
        given = {"validation": self.validation, "test": self.test}
        held_out = {split: _tuple(locators) for split, locators in given.items() if locators is not None}
        if held_out:
            reading = ReadingOptions(format="text", text_rows=self.text_rows, encoding=self.encoding)
            others, more = load_split_files(held_out, find_files, reading=reading, selection=Selection())
            splits.update(others)
            records += more
        note = f"train is streamed: its first {len(first)} rows are checked, counted and kept in the record"
        return LoadedData(
            splits,
            described("text_stream", {"train": _tuple(self.train), **held_out}),
            tuple(records),
            (note,),
            RowStream(rows, self.shuffle_buffer),
        )


@dataclass(frozen=True)
class _Rows:
    """The rows of files with their origins; each call reads anew."""

    files: Sequence[Path]
    unit: Literal["line", "paragraph"]
    encoding: str

    def __call__(self) -> Iterator[tuple[str, str]]:
        for file in self.files:
            lines: list[str] = []
            start = 0
            for number, line in self._lines(file):
                if lines and (self.unit == "line" or not line.strip()):
                    yield "\n".join(lines), f"{file}:{start}"
                    lines = []
                if line.strip():
                    start = number if not lines else start
                    lines.append(line)
            if lines:
                yield "\n".join(lines), f"{file}:{start}"

    def _lines(self, file: Path) -> Iterator[tuple[int, str]]:
        """Numbered lines without their ends, one at a time."""
        number = 0
        try:
            with _opened(file, self.encoding) as lines:
                for number, line in enumerate(lines, start=1):
                    yield number, (line.removeprefix("\ufeff") if number == 1 else line).rstrip("\r\n")
        except UnicodeDecodeError as problem:
            raise DataError(
                f"{file}:{number + 1} or soon after is not {self.encoding} ({problem.reason}); set its real encoding, "
                "e.g.  data.encoding: latin-1  or save it as UTF-8"
            ) from problem
        except (OSError, EOFError) as problem:
            raise DataError(f"{file}:{number + 1} cannot be read ({problem}); copy or pack the file again") from problem


def _opened(file: Path, encoding: str) -> IO[str]:
    if file.suffix.lower() == ".gz":
        return gzip.open(file, "rt", encoding=encoding, newline="\n")
    return file.open(encoding=encoding, newline="\n")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _tuple(locators: str | tuple[str, ...]) -> tuple[str, ...]:
    return (locators,) if isinstance(locators, str) else locators


def _shown(files: Sequence[Path]) -> str:
    return ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
