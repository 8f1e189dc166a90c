"""Data sources: where rows come from. A source returns splits of untokenized rows and says where it found them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from peftkit.errors import DataError
from peftkit.registry import Component, Registry
from peftkit.results import ArtifactRecord

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

ORIGIN = "__origin__"
"""Column with file and line of a row ('reviews.csv:17'), carried by sources that know it."""


class MissingFilesError(DataError):
    """Files that are not there. `first_available` goes on to its next source; any other `DataError` stops it."""


@dataclass(frozen=True)
class RowStream:
    """Training rows that are read while training goes on.

    Args:
        texts: begins anew with every call; texts with their origins.
        buffer: blocks among which the next one is drawn.
    """

    texts: Callable[[], Iterator[tuple[str, str]]]
    buffer: int


@dataclass(frozen=True)
class LoadedData:
    """Rows and where they came from.

    Args:
        splits: rows by split name (train, validation, test, ...), in the source's order.
        source: one line for the report: which source, with its locator.
        artifacts: what was downloaded or read.
        notes: what the user should know, e.g. which sources were passed over and why.
        stream: where training rows come from; the split train then holds the first of them.
    """

    splits: DatasetDict
    source: str
    artifacts: tuple[ArtifactRecord, ...] = ()
    notes: tuple[str, ...] = field(default=())
    stream: RowStream | None = None


class DataSource(Component):
    """Where rows come from."""

    columns: Mapping[str, str] = {}
    """Which column of the source feeds which column of the task: {text: sentence}. Two task columns may share a source
    column, and two columns may swap names; columns that are not named keep their own."""

    def load(self) -> LoadedData:
        """All splits with the task's column names.

        Raises:
            DataError: files or rows that cannot be read, with file and line.
            ArtifactError: a locator that leads nowhere.
        """
        from datasets import DatasetDict

        loaded = self.read()
        for split, rows in loaded.splits.items():
            self._check_columns(split, rows.column_names, loaded.source)
        mapped = {split: _with_columns(rows, self.columns) for split, rows in loaded.splits.items()}
        return replace(loaded, splits=DatasetDict(mapped))

    def read(self) -> LoadedData:
        """All splits with the source's own column names; what a new source implements."""
        raise NotImplementedError

    def _check_columns(self, split: str, present: list[str], source: str) -> None:
        for column, wanted in self.columns.items():
            if wanted not in present:
                listed = ", ".join(name for name in present if name != ORIGIN)
                raise DataError(
                    f"split {split!r} of {source} has no column {wanted!r} (it has: {listed}); "
                    f"correct the recipe at  data.columns.{column}"
                )


def _with_columns(rows: Dataset, columns: Mapping[str, str]) -> Dataset:
    """`rows` with each key of `columns` filled from the column it names; a column in the way of a key gives way."""
    first: dict[str, str] = {}
    for column, source in columns.items():
        first.setdefault(source, column)
    in_the_way = [name for name in rows.column_names if name in columns and name not in first]
    mapped = rows.remove_columns(in_the_way).rename_columns(first)
    for column, source in columns.items():
        if first[source] != column:
            values = mapped.select_columns([first[source]]).with_format("arrow")[:].column(0)
            mapped = mapped.add_column(column, values, feature=mapped.features[first[source]])
    return mapped


sources: Registry[DataSource] = Registry("peftkit.data", "data source")
