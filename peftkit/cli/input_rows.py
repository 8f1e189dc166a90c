"""Rows for `peftkit predict`, read one by one so that a file of any size fits, each with its file and line."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from peftkit.errors import DataError

STDIN = Path("-")


@dataclass(frozen=True)
class InputRow:
    """One input.

    Args:
        value: a string, or a mapping of columns.
        place: file and line, for messages.
    """

    value: str | dict[str, Any]
    place: str


def check_readable(file: Path) -> None:
    """Refuse a file before a model is loaded for it.

    Raises:
        DataError: the file is missing, or has an ending that names no format.
    """
    if file == STDIN:
        return
    if file.suffix.lower() not in _READERS:
        raise DataError(f"'{file}' has the ending '{file.suffix}'; give one of: {', '.join(_READERS)}, or - for stdin")
    if not file.is_file():
        raise DataError(f"there is no file '{file}'")


def read_rows(file: Path) -> Iterator[InputRow]:
    """The rows of a file or of standard input, lazily.

    Raises:
        DataError: a line that is not what the file's ending says; names file and line.
    """
    if file == STDIN:
        yield from _json_rows("stdin", sys.stdin.buffer)
        return
    with file.open("rb") as stream:
        yield from _READERS[file.suffix.lower()](str(file), stream)


def in_chunks(rows: Iterable[InputRow], size: int) -> Iterator[list[InputRow]]:
    """Lists of at most `size` rows."""
    remaining = iter(rows)
    while chunk := list(islice(remaining, size)):
        yield chunk


def _lines(file: str, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as problem:
            raise DataError(
                f"{file}:{number} is not UTF-8 (byte {problem.start} of the line); save it as UTF-8"
            ) from problem
        yield number, text


def _json_rows(file: str, stream: BinaryIO) -> Iterator[InputRow]:
    for number, line in _lines(file, stream):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        # Beside JSONDecodeError: numbers of thousands of digits, and nesting beyond the interpreter's stack.
        except (ValueError, RecursionError) as problem:
            raise DataError(
                f'{file}:{number} is not JSON ({problem}); write one object or string a line: {{"text": "..."}}'
            ) from problem
        if not isinstance(value, (str, dict)):
            raise DataError(f'{file}:{number} is {value!r:.60}; write an object {{"text": "..."}} or a string')
        yield InputRow(value, f"{file}:{number}")


def _delimited_rows(file: str, stream: BinaryIO, *, delimiter: str) -> Iterator[InputRow]:
    cells = csv.reader((text for _, text in _lines(file, stream)), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = cells.line_num + 1
        try:
            row = next(cells, None)
        except csv.Error as problem:
            raise DataError(f"{file}:{line} is not valid: {problem}; check its quotes") from problem
        if row is None:
            return
        if not row:
            continue
        if header is None:
            header = row
        elif len(row) != len(header):
            raise DataError(
                f"{file}:{line} has {len(row)} cells, the header names {len(header)} ({', '.join(header)}); "
                "put a cell that contains the delimiter in quotes"
            )
        else:
            yield InputRow(dict(zip(header, row, strict=True)), f"{file}:{line}")


def _comma_rows(file: str, stream: BinaryIO) -> Iterator[InputRow]:
    return _delimited_rows(file, stream, delimiter=",")


def _tab_rows(file: str, stream: BinaryIO) -> Iterator[InputRow]:
    return _delimited_rows(file, stream, delimiter="\t")


def _text_rows(file: str, stream: BinaryIO) -> Iterator[InputRow]:
    for number, line in _lines(file, stream):
        if line.strip():
            yield InputRow(line.rstrip("\r\n"), f"{file}:{number}")


_READERS: dict[str, Callable[[str, BinaryIO], Iterator[InputRow]]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".csv": _comma_rows,
    ".tsv": _tab_rows,
    ".txt": _text_rows,
}
