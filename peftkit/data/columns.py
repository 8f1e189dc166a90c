"""From raw tables to typed data sets, and several data sets to one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from peftkit.data import ORIGIN
from peftkit.data.raw_table import RawTable
from peftkit.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

CellType = Literal["int64", "float64", "string"]

# 18 and 15 digits are what int64 and float64 hold exactly. A leading zero or plus marks an identifier, not a number.
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_REAL = re.compile(r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?")


def cell_types(tables: Iterable[RawTable], *, infer_numbers: bool) -> dict[str, CellType]:
    """The type of each column of text cells, settled over all files and splits together.

    int64 if every non-empty cell is a plain integer, float64 if every one is a plain number, else string.
    """
    types: dict[str, CellType] = {}
    widest: tuple[CellType, ...] = ("int64", "float64", "string")
    filled: set[str] = set()
    for table in tables:
        for column, cells in table.columns.items() if table.untyped and isinstance(table.columns, Mapping) else ():
            known = types.get(column, "int64")
            found = _cell_type(cells) if infer_numbers and known != "string" else "string"
            types[column] = max(known, found, key=widest.index)
            if any(cells):
                filled.add(column)
    return {column: known if column in filled else "string" for column, known in types.items()}


def _cell_type(cells: Sequence[str]) -> CellType:
    values = [cell for cell in cells if cell]
    if all(map(_INTEGER.fullmatch, values)):
        return "int64"
    return "float64" if all(map(_REAL.fullmatch, values)) else "string"


def to_dataset(table: RawTable, types: Mapping[str, CellType]) -> Dataset:
    """One file's rows with the column `ORIGIN`; empty cells of delimited text become None.

    Args:
        types: the type of each column, from `cell_types`; of use to tables of text cells only.

    Raises:
        DataError: a column that mixes types, with file and line.
    """
    import pyarrow as pa
    from datasets import Features, Value

    names = list(table.columns.keys() if isinstance(table.columns, Mapping) else table.columns.column_names)
    if ORIGIN in names:
        raise DataError(f"{table.file} has a column {ORIGIN!r}, a name that peftkit needs itself; rename the column")
    if not isinstance(table.columns, Mapping):
        features, arrays = Features.from_arrow_schema(table.columns.schema), table.columns.columns
    elif table.untyped:
        arrays = [_typed(cells, types[column]) for column, cells in table.columns.items()]
        features = Features({column: Value(types[column]) for column in names})
    else:
        arrays = [_json_column(table, column) for column in names]
        features = Features.from_arrow_schema(pa.table(arrays, names=names).schema)
    origins = pa.array([f"{table.file}:{line}" for line in table.lines], pa.string())
    return _dataset(
        pa.table([*arrays, origins], names=[*names, ORIGIN]), Features({**features, ORIGIN: Value("string")})
    )


def _typed(cells: Sequence[str], kind: CellType) -> pa.Array:
    import pyarrow as pa

    if kind == "int64":
        return pa.array([int(cell) if cell else None for cell in cells], pa.int64())
    if kind == "float64":
        return pa.array([float(cell) if cell else None for cell in cells], pa.float64())
    return pa.array([cell or None for cell in cells], pa.string())


def _json_column(table: RawTable, column: str) -> pa.Array:
    import pyarrow as pa

    values = table.columns[column]
    refusals = (pa.ArrowException, OverflowError, UnicodeEncodeError)
    try:
        array = pa.array(values)
    except refusals as problem:
        if _holds_objects(values):
            return _as_json(values)
        _refuse_mixture(table, column, refusals, problem)
    if pa.types.is_null(array.type):
        return array.cast(pa.string())
    # Arrow gives every object of a column the same keys; objects with keys of their own stay as they are in JSON.
    if pa.types.is_nested(array.type) and _holds_objects(values) and array.to_pylist() != list(values):
        return _as_json(values)
    return array


def _holds_objects(values: Sequence[Any]) -> bool:
    """Whether all values are objects or lists of objects."""
    return all(
        value is None
        or isinstance(value, dict)
        or (isinstance(value, list) and all(isinstance(part, dict) for part in value))
        for value in values
    )


def _as_json(values: Sequence[Any]) -> pa.Array:
    import pyarrow as pa

    texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))


def _refuse_mixture(
    table: RawTable, column: str, refusals: tuple[type[BaseException], ...], problem: BaseException
) -> None:
    """Raise with the first row that does not go with the rows before it, found by halving."""
    import pyarrow as pa

    values = table.columns[column]
    fits, fails = 0, len(values)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        try:
            pa.array(values[:middle])
            fits = middle
        except refusals:
            fails = middle
    value, line = values[fits], table.lines[fits]
    if isinstance(problem, UnicodeEncodeError):
        reason = "holds half of a surrogate pair, which is not text; rewrite the value"
    elif isinstance(problem, OverflowError):
        reason = "is a whole number beyond 64 bits; write it as text"
    else:
        before = pa.array(values[:fits]).type
        reason = f"is {type(value).__name__}, the rows before it are {before}; write one type in the whole column"
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    raise DataError(f"{table.file}:{line} column {column!r}: {shown} {reason}") from problem


def rows_at(rows: Dataset, indices: Sequence[int]) -> Dataset:
    """The rows at `indices`, in their old order, copied; what `Dataset.select` returns is far slower to read."""
    import numpy as np

    plain = rows.flatten_indices() if rows._indices is not None else rows
    mask = np.zeros(len(rows), dtype=bool)
    mask[list(indices)] = True
    return _dataset(plain.data.table.filter(mask), rows.features)


def concatenate(parts: Sequence[tuple[str, Dataset]]) -> Dataset:
    """The rows of all parts, in order, under the first part's columns.

    Whole and real numbers meet as float64; the origin may be missing in some parts.

    Args:
        parts: name for messages, and rows.

    Raises:
        DataError: columns or types that differ, naming the part and the column.
    """
    from datasets import concatenate_datasets

    if len(parts) == 1:
        return parts[0][1]
    first_name, first = parts[0]
    columns = {name: first.features[name] for name in first.column_names if name != ORIGIN}
    for name, rows in parts[1:]:
        others = [column for column in rows.column_names if column != ORIGIN]
        odd = sorted(set(columns) ^ set(others))
        if odd:
            holder, lacking = (first_name, name) if odd[0] in columns else (name, first_name)
            raise DataError(
                f"{holder} has a column {odd[0]!r}, {lacking} has not ({first_name}: {', '.join(columns)}; "
                f"{name}: {', '.join(others)}); give all the same columns"
            )
        for column in columns:
            columns[column] = _shared_type((first_name, columns[column]), (name, rows.features[column]), column)
    return concatenate_datasets([_conformed(rows, columns) for _, rows in parts])


def _shared_type(first: tuple[str, Any], second: tuple[str, Any], column: str) -> Any:
    from datasets import Value

    one, other = first[1], second[1]
    if one == other:
        return one
    kinds = {str(getattr(feature, "dtype", "")) if isinstance(feature, Value) else "" for feature in (one, other)}
    if "null" in kinds:
        return other if getattr(one, "dtype", "") == "null" else one
    if kinds <= {"string", "large_string"}:
        return Value("string")
    if "" not in kinds and all(kind.startswith(("int", "uint", "float")) for kind in kinds):
        return Value("int64") if all("int" in kind for kind in kinds) else Value("float64")
    raise DataError(f"column {column!r} is {one} in {first[0]}, but {other} in {second[0]}; give it one type in both")


def _conformed(rows: Dataset, columns: Mapping[str, Any]) -> Dataset:
    """`rows` with exactly these column types and an origin."""
    import pyarrow as pa
    from datasets import Features, Value

    wanted = Features({**columns, ORIGIN: Value("string")})
    if dict(rows.features) == dict(wanted):
        return rows.select_columns(list(wanted))
    table = rows.with_format("arrow")[:]
    if ORIGIN not in table.column_names:
        table = table.append_column(ORIGIN, pa.nulls(len(table), pa.string()))
    return _dataset(table.select(list(wanted)).cast(wanted.arrow_schema), wanted)


def _dataset(table: pa.Table, features: Any) -> Dataset:
    from datasets import Dataset, DatasetInfo
    from datasets.table import InMemoryTable

    return Dataset(InMemoryTable(table.cast(features.arrow_schema)), info=DatasetInfo(features=features))
