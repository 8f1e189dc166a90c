"""CSV, TSV and other delimited text, read strictly: a row that does not fit is an error."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NoReturn

from peftkit.data.raw_table import RawTable
from peftkit.errors import DataError

_LONGEST_FIELD = 2**31 - 1
"""csv's own default limit (131,072 characters) is shorter than many documents."""
_BLOCK = 10_000
"""Rows kept as lists at a time; a million of them would keep the garbage collector busy."""


@dataclass(frozen=True)
class Dialect:
    """How lines are cut into fields.

    Args:
        delimiter: between fields; may have several characters if `quoting` is off.
        quoting: whether "..." protects delimiters and line ends; None: yes, but refuse what is ambiguous.
        header: whether the first line names the columns.
        column_names: names in place of the header's.
        extra_fields: what to do with fields beyond the last column.
    """

    delimiter: str
    quoting: bool | None
    header: bool
    column_names: tuple[str, ...] | None
    extra_fields: Literal["error", "drop", "join"]


def read_delimited(file: str, text: str, dialect: Dialect) -> RawTable:
    """Columns of text cells.

    Raises:
        DataError: a row with too few or too many fields, a quote that is never closed, a header that does not fit.
    """
    records = _split_lines(text, dialect) if dialect.quoting is False else _parse_quoted(file, text, dialect)
    names = _column_names(file, next(records), dialect) if dialect.header else list(dialect.column_names or ())
    width = len(names)
    columns: list[list[str]] = [[] for _ in names]
    block: list[list[str]] = []
    lines: list[int] = []
    blank: int | None = None
    for line, row in records:
        if len(row) != width or blank is not None:
            if not row or row == [""]:
                blank = blank or line
                continue
            if blank is not None:
                raise DataError(f"{file}:{blank} is blank; remove the line, or write its {width} fields")
            row = _fitted(file, line, row, width=width, dialect=dialect)
        block.append(row)
        lines.append(line)
        if len(block) == _BLOCK:
            _move(block, columns)
    _move(block, columns)
    if not lines:
        raise DataError(f"{file} has a header but no rows" if dialect.header else f"{file} holds no rows")
    return RawTable(file, dict(zip(names, columns, strict=True)), lines, untyped=True)


def _move(block: list[list[str]], columns: list[list[str]]) -> None:
    """Append the rows of `block` to the columns and empty it."""
    for column, cells in zip(columns, zip(*block, strict=True), strict=False):
        column.extend(cells)
    block.clear()


def _split_lines(text: str, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    cuts = len(dialect.column_names) - 1 if dialect.extra_fields == "join" and dialect.column_names else -1
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        fields = line.removesuffix("\r").split(dialect.delimiter, cuts)
        if number == 1 and dialect.extra_fields == "join" and dialect.header:
            cuts = len(fields) - 1
        yield number, fields


def _parse_quoted(file: str, text: str, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=dialect.delimiter, strict=True)
    tabs_are_suspect = dialect.quoting is None and dialect.delimiter == "\t"
    usual_limit = csv.field_size_limit(_LONGEST_FIELD)
    start = 1
    try:
        for row in reader:
            if tabs_are_suspect and reader.line_num > start and any("\t" in cell and "\n" in cell for cell in row):
                raise DataError(
                    f"{file}:{start} opens a double quote that swallows tabs and line ends up to line "
                    f"{reader.line_num}; if quotes are part of the text set  data.quoting: false  (else  true)"
                )
            yield start, row
            start = reader.line_num + 1
    except csv.Error as problem:
        _refuse(file, start, problem)
    finally:
        csv.field_size_limit(usual_limit)


def _refuse(file: str, line: int, problem: csv.Error) -> NoReturn:
    reason = str(problem)
    if "unexpected end of data" in reason:
        reason = "opens a double quote that is never closed"
        hint = 'close it, or if quotes are part of the text set  data.quoting: false  (or write them as "")'
    elif "new-line character" in reason:
        reason = "has a carriage return outside quotes"
        hint = "quote the field, or convert the line ends to \\n"
    else:
        reason = f"is not valid quoting ({reason})"
        hint = 'write "" for a quote inside a quoted field, or if quotes are part of the text set  data.quoting: false'
    raise DataError(f"{file}:{line} {reason}; {hint}") from problem


def _column_names(file: str, first: tuple[int, list[str]], dialect: Dialect) -> list[str]:
    header = [name.strip() or f"unnamed_{place}" for place, name in enumerate(first[1], start=1)]
    if dialect.column_names is not None:
        if len(dialect.column_names) != len(header):
            raise DataError(
                f"{file}:1 names {len(header)} columns ({', '.join(header)}), but data.column_names gives "
                f"{len(dialect.column_names)} ({', '.join(dialect.column_names)}); make them the same number"
            )
        return list(dialect.column_names)
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"{file}:1 names the column {twice[0]!r} twice; rename one there or set  data.column_names"
            " (or, if the file has no header,  data.header: false)"
        )
    if not header:
        raise DataError(f"{file}:1 is blank where the header should be; remove the line or set  data.header: false")
    return header


def _fitted(file: str, line: int, row: list[str], *, width: int, dialect: Dialect) -> list[str]:
    if len(row) == width:
        return row
    if len(row) > width and dialect.extra_fields == "drop":
        return row[:width]
    if len(row) > width:
        hint = "quote the field that holds the delimiter, or set  data.extra_fields: drop | join"
    else:
        hint = "write the missing fields (they may be empty)"
        if dialect.quoting is not False and any('"' in cell for cell in row):
            hint += "; if quotes are part of the text set  data.quoting: false"
    raise DataError(
        f"{file}:{line} has {len(row)} fields where {width} are expected (delimiter {dialect.delimiter!r}): "
        f"{_shortened(dialect.delimiter.join(row))!r}; {hint}"
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
