"""What a file reader returns: columns and the line of every row, before types are settled across files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class RawTable:
    """The rows of one file.

    Args:
        file: the file's name in messages and origins.
        columns: cells by column, or a whole Arrow table where the format brings its own types.
        lines: 1-based line of each row; for Parquet, which has no lines, the 1-based row.
        untyped: cells are text without a type, as in CSV.
    """

    file: str
    columns: Mapping[str, Sequence[Any]] | pa.Table
    lines: Sequence[int]
    untyped: bool = False


def decode(file: str, content: bytes, encoding: str) -> str:
    """The text of a file, without a byte-order mark.

    Raises:
        DataError: the bytes are not in `encoding`; names the offset and the line.
    """
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as problem:
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            hint = "it starts like UTF-16: set  data.encoding: utf-16"
        else:
            hint = "set its real encoding, e.g.  data.encoding: latin-1  or save it as UTF-8"
        line = content.count(b"\n", 0, problem.start) + 1
        raise DataError(
            f"{file}:{line} is not {encoding}: byte 0x{content[problem.start]:02x} at offset {problem.start}; {hint}"
        ) from problem
    return text.removeprefix("\ufeff")
