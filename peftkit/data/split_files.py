"""Files as splits: which files feed which split, and how their rows become data sets."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from peftkit.data.columns import cell_types, concatenate, to_dataset
from peftkit.data.raw_table import RawTable
from peftkit.data.reading import ReadingOptions
from peftkit.data.splitting import Selection, split_count
from peftkit.results import ArtifactRecord

if TYPE_CHECKING:
    from datasets import DatasetDict


class SplitFiles(BaseModel):
    """Which files feed which split; shared by every source that reads files."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    train: str | tuple[str, ...] | None = None
    """File or pattern (data/*.csv), or several; '#N' at the end takes N random rows: reviews.csv#1000."""
    validation: str | tuple[str, ...] | None = None
    """As train."""
    test: str | tuple[str, ...] | None = None
    """As train."""

    @model_validator(mode="after")
    def _check_given(self) -> Self:
        if not self.locators():
            raise ValueError("no files are given; name at least one of train, validation, test")
        return self

    def locators(self) -> dict[str, tuple[str, ...]]:
        """The given locators by split."""
        given = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            split: (locators,) if isinstance(locators, str) else locators
            for split, locators in given.items()
            if locators
        }


@dataclass(frozen=True)
class FileContent:
    """One file that a locator stands for.

    Args:
        name: for messages and origins.
        read: returns the file's bytes.
    """

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class _Entry:
    """One locator, read."""

    locator: str
    count: int | None
    tables: tuple[RawTable, ...]
    sha256: str


def load_split_files(
    locators: Mapping[str, Sequence[str]],
    find: Callable[[str], Sequence[FileContent]],
    *,
    reading: ReadingOptions,
    selection: Selection,
    origin: Literal["local", "wheel"] = "local",
) -> tuple[DatasetDict, tuple[ArtifactRecord, ...]]:
    """The rows of all splits, and a record of each locator with the digest of its files.

    Args:
        locators: by split, each with or without '#N'.
        find: the files that a locator without '#N' stands for, sorted.

    Raises:
        DataError: files that are missing or cannot be read.
    """
    from datasets import DatasetDict

    entries = {split: [_read(locator, find, reading) for locator in given] for split, given in locators.items()}
    everything = [entry for given in entries.values() for entry in given]
    types = cell_types((table for entry in everything for table in entry.tables), infer_numbers=reading.infer_numbers)
    splits = DatasetDict()
    for split, given in entries.items():
        parts = []
        for entry in given:
            rows = concatenate([(table.file, to_dataset(table, types)) for table in entry.tables])
            place = split_count(entry.locator)[0]
            parts.append((place, selection.select(rows, count=entry.count, place=place)))
        splits[split] = concatenate(parts)
    records = [ArtifactRecord(locator=entry.locator, origin=origin, sha256=entry.sha256) for entry in everything]
    return selection.with_held_out(splits, place="data"), tuple(records)


def _read(locator: str, find: Callable[[str], Sequence[FileContent]], reading: ReadingOptions) -> _Entry:
    pattern, count = split_count(locator)
    tables = []
    digests = []
    for file in find(pattern):
        content = file.read()
        digests.append(hashlib.sha256(content).hexdigest())
        tables.append(reading.read_file(file.name, content))
    # One file has its own digest, so that sha256sum confirms it.
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return _Entry(locator, count, tuple(tables), digest)


def described(name: str, locators: Mapping[str, Sequence[str]]) -> str:
    """One line for messages and the report: `files (train: reviews.csv, test: held.csv)`."""
    listed = (f"{split}: {' '.join(given)}" for split, given in locators.items())
    return f"{name} ({', '.join(listed)})"
