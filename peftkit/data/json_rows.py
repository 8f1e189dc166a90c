"""JSON arrays and JSON Lines, with the line of every row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from peftkit.data.raw_table import RawTable
from peftkit.errors import DataError

_BLANK = re.compile(r"[ \t\r\n]*")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value, write null")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def read_jsonl(file: str, text: str) -> RawTable:
    """One object a line; blank lines hold no row.

    Raises:
        DataError: a line that is not a JSON object.
    """
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or line.isspace():
            continue
        row, end = _value_at(file, line, 0, first_line=number)
        if _after_blanks(line, end) != len(line):
            raise DataError(f"{file}:{number} goes on after its first JSON value; write one object a line")
        if number == 1 and isinstance(row, list):
            raise DataError(f"{file}:1 starts an array, so this is not JSON Lines; set  data.format: json")
        rows.append(_object(file, number, row))
        lines.append(number)
    return _table(file, rows, lines)


def read_json(file: str, text: str, rows_at: str | None) -> RawTable:
    """An array of objects, at the top or under the key `rows_at` of an object.

    Raises:
        DataError: text that is not JSON, or holds something else; names the line.
    """
    start = _after_blanks(text, 0)
    if text[start : start + 1] == "{":
        start = _position_of_rows(file, text, start, rows_at)
    elif rows_at is not None:
        raise DataError(f"{file} is no object with the key {rows_at!r} (data.rows_at); leave rows_at out")
    if text[start : start + 1] != "[":
        raise DataError(f"{file}:{_line(text, start)} holds no array of rows; write  [{{...}}, {{...}}]")
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    counted, line = 0, 1
    for position, row in _elements(file, text, start):
        line += text.count("\n", counted, position)
        counted = position
        rows.append(_object(file, line, row))
        lines.append(line)
    return _table(file, rows, lines)


def _elements(file: str, text: str, start: int) -> Iterator[tuple[int, Any]]:
    """Position and value of each element of the array that opens at `start`; checks what follows a top-level array."""
    position = _after_blanks(text, start + 1)
    if text[position : position + 1] == "]":
        return
    while True:
        value, end = _value_at(file, text, position)
        yield position, value
        end = _after_blanks(text, end)
        mark = text[end : end + 1]
        if mark == "]":
            break
        if mark != ",":
            _refuse(file, _line(text, end), "expecting ',' or ']' between rows", stops=end >= len(text))
        position = _after_blanks(text, end + 1)
    rest = _after_blanks(text, end + 1)
    if text[_after_blanks(text, 0)] == "[" and rest != len(text):
        _refuse(file, _line(text, rest), "text after the closing ']'")


def _position_of_rows(file: str, text: str, start: int, rows_at: str | None) -> int:
    """Where the value of the key `rows_at` of the top-level object begins."""
    found: dict[str, int] = {}
    arrays: list[str] = []
    position = _after_blanks(text, start + 1)
    while text[position : position + 1] != "}":
        key, end = _value_at(file, text, position)
        colon = _after_blanks(text, end)
        if not isinstance(key, str) or text[colon : colon + 1] != ":":
            _refuse(file, _line(text, colon), "expecting a key and ':'", stops=colon >= len(text))
        found[key] = _after_blanks(text, colon + 1)
        value, end = _value_at(file, text, found[key])
        if isinstance(value, list):
            arrays.append(key)
        position = _after_blanks(text, end)
        if text[position : position + 1] == ",":
            position = _after_blanks(text, position + 1)
        elif text[position : position + 1] != "}":
            _refuse(file, _line(text, position), "expecting ',' or '}'", stops=position >= len(text))
    rest = _after_blanks(text, position + 1)
    if rest != len(text):
        raise DataError(
            f"{file}:{_line(text, rest)} goes on after the first object; for one object a line set  data.format: jsonl"
        )
    if rows_at is None:
        one = f"; if its rows are under {arrays[0]!r} set  data.rows_at: {arrays[0]}" if arrays else ""
        raise DataError(f"{file} holds one object, not an array of rows (its keys: {', '.join(found)}){one}")
    if rows_at not in found:
        raise DataError(f"{file} has no key {rows_at!r} (it has: {', '.join(found)}); correct  data.rows_at")
    return found[rows_at]


def _value_at(file: str, text: str, position: int, *, first_line: int = 1) -> tuple[Any, int]:
    try:
        return _decoder.raw_decode(text, position)
    except json.JSONDecodeError as problem:
        stops = problem.pos >= len(text.rstrip()) or problem.msg.startswith("Unterminated string")
        line = first_line + problem.lineno - 1
        _refuse(file, line, f"{problem.msg} at column {problem.colno}", stops=stops, cause=problem)
    # A number of more than 4,300 digits and a refused constant are bare ValueErrors; deep nesting ends the recursion.
    except (ValueError, RecursionError) as problem:
        _refuse(file, first_line + _line(text, position) - 1, str(problem), cause=problem)


def _object(file: str, line: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f'{file}:{line} is {_shown(row)}, not an object; write each row as  {{"column": value, ...}}')
    return row


def _table(file: str, rows: Sequence[dict[str, Any]], lines: Sequence[int]) -> RawTable:
    if not rows:
        raise DataError(f"{file} holds no rows; write at least one")
    # A key that some rows lack is null there, as in JSON's own reading; the data check refuses it where it matters.
    names = list(dict.fromkeys(key for row in rows for key in row))
    return RawTable(file, {name: [row.get(name) for row in rows] for name in names}, lines)


def _refuse(file: str, line: int, reason: str, *, stops: bool = False, cause: BaseException | None = None) -> NoReturn:
    what = "stops half-way through a JSON value" if stops else "is not JSON"
    raise DataError(f"{file}:{line} {what} ({reason}); repair or rewrite the file") from cause


def _after_blanks(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
