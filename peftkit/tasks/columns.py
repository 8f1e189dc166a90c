"""Which columns of the rows a task needs, told in one way; how long the cells of columns are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from peftkit.errors import DataError

if TYPE_CHECKING:
    import numpy as np
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
                raise DataError(no_column(split, rows, column, reason=reason))


def no_column(split: str, rows: Dataset, column: str, *, reason: str = "") -> str:
    """What is said of a column that a split lacks; see `check_columns`."""
    listed = ", ".join(name for name in rows.column_names if not name.startswith("__"))
    return (
        f"split {split!r} has no column {column!r}{reason} (it has: {listed}); "
        f"map it in the recipe with  data.columns: {{{column}: ...}}"
    )


def cell_lengths(features: Dataset, columns: Iterable[str]) -> np.ndarray:
    """(features,) length of the longest list in those of the columns that are there; read without making lists."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    there = [column for column in columns if column in features.column_names]
    table = features.select_columns(there).with_format("arrow")[:]
    found = np.zeros(len(features), np.int64)
    for column in there:
        cells = table.column(column)
        if pa.types.is_list(cells.type.value_type):  # several lists in a cell
            cells = cells.combine_chunks()
            owners = pc.list_parent_indices(cells).to_numpy(zero_copy_only=False)
            np.maximum.at(found, owners, pc.list_value_length(pc.list_flatten(cells)).to_numpy(zero_copy_only=False))
        else:
            np.maximum(found, pc.fill_null(pc.list_value_length(cells), 0).to_numpy(), out=found)
    return found
