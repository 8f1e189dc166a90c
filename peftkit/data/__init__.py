"""Data sources: where rows come from. A source returns splits of untokenized rows and says where it found them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from peftkit.errors import DataError
from peftkit.registry import Component, Registry
from peftkit.results import ArtifactRecord

if TYPE_CHECKING:
    from datasets import DatasetDict

ORIGIN = "__origin__"
"""Column with file and line of a row ('reviews.csv:17'), carried by sources that know it."""


@dataclass(frozen=True)
class LoadedData:
    """Rows and where they came from.

    Args:
        splits: rows by split name (train, validation, test, ...), in the source's order.
        source: one line for the report: which source, with its locator.
        artifacts: what was downloaded or read.
        notes: what the user should know, e.g. which sources were passed over and why.
    """

    splits: DatasetDict
    source: str
    artifacts: tuple[ArtifactRecord, ...] = ()
    notes: tuple[str, ...] = field(default=())


class DataSource(Component):
    """Where rows come from."""

    columns: Mapping[str, str] = {}
    """Which column of the source feeds which column of the task: {text: sentence}."""

    def load(self) -> LoadedData:
        """All splits with the task's column names.

        Raises:
            DataError: files or rows that cannot be read, with file and line.
            ArtifactError: a locator that leads nowhere.
        """
        loaded = self.read()
        for split, rows in loaded.splits.items():
            self._check_columns(split, rows.column_names, loaded.source)
        taken = {source: column for column, source in self.columns.items() if column != source}
        for split, rows in loaded.splits.items():
            # A column that already has the wanted name gives way to the mapped one.
            shadowed = [name for name in taken.values() if name in rows.column_names]
            loaded.splits[split] = rows.remove_columns(shadowed).rename_columns(taken)
        return loaded

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


sources: Registry[DataSource] = Registry("peftkit.data", "data source")
