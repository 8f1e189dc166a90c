"""Which columns of the rows a task needs, told in one way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from peftkit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


def check_columns(splits: Mapping[str, Dataset], needed: Iterable[str], *, reason: str = "") -> None:
    """See that every split has the columns.

    Args:
        reason: why they are needed, where that is not plain, as in ", which objective 'pairs' needs".

    Raises:
        DataError: with the split, the first column that it lacks, and what it has.
    """
    columns = tuple(needed)
    for split, rows in splits.items():
        for column in columns:
            if column not in rows.column_names:
                listed = ", ".join(name for name in rows.column_names if not name.startswith("__"))
                raise DataError(
                    f"split {split!r} has no column {column!r}{reason} (it has: {listed}); "
                    f"map it in the recipe with  data.columns: {{{column}: ...}}"
                )
