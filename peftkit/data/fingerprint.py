"""Digests over rows: of a whole split, for the record of a run; of single rows, for splits that stay put."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from peftkit.data import ORIGIN

if TYPE_CHECKING:
    from datasets import Dataset

_BLOCK = 4096


def fingerprint(rows: Dataset) -> str:
    """SHA-256 over all values, in row order; columns in any order, the origin left out.

    Equal rows give equal fingerprints on every machine and from every path.
    """
    names = sorted(name for name in rows.column_names if name != ORIGIN)
    digests = {name: hashlib.sha256() for name in names}
    for block in _blocks(rows, names):
        for name, values in zip(names, block, strict=True):
            digests[name].update(_text(values))
    content = [[name, digests[name].hexdigest()] for name in names]
    return hashlib.sha256(_text([len(rows), content])).hexdigest()


def row_digests(rows: Dataset, *, columns: Sequence[str] = (), seed: int = 0) -> Iterator[bytes]:
    """A SHA-256 digest per row, from its own content and the seed alone.

    A whole number counts the same as int and as float, and numbers the same as their text, since the type of a CSV
    column can change with the rows around.

    Args:
        columns: the ones that count; none: all but the origin.
    """
    names = sorted(columns) or sorted(name for name in rows.column_names if name != ORIGIN)
    for block in _blocks(rows, names):
        for values in zip(*block, strict=True):
            yield hashlib.sha256(_text([seed, *map(_untyped, values)])).digest()


def _blocks(rows: Dataset, names: Sequence[str]) -> Iterator[list[list[Any]]]:
    """Lists of values, one per name, of `_BLOCK` rows at a time; the size is part of the fingerprint."""
    arrow = rows.select_columns(list(names)).with_format("arrow")
    for start in range(0, len(rows), _BLOCK):
        table = arrow[start : start + _BLOCK]
        yield [table.column(name).to_pylist() for name in names]


# repr serves what JSON cannot hold and Parquet can: bytes, dates, decimals.
_encoder = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=repr)


def _text(values: list[Any]) -> bytes:
    return _encoder.encode(values).encode()


def _untyped(value: Any) -> Any:
    if value is None or isinstance(value, (list, dict)):
        return value
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
