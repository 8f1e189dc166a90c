"""From the bytes of one file to a raw table: options that say how, and the choice of the format's reader."""

from __future__ import annotations

import gzip
import zlib
from pathlib import PurePath
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from peftkit.data.conll import read_conll
from peftkit.data.delimited import Dialect, read_delimited
from peftkit.data.json_rows import read_json, read_jsonl
from peftkit.data.raw_table import RawTable, decode
from peftkit.data.squad import read_squad
from peftkit.errors import DataError

Format = Literal["csv", "tsv", "json", "jsonl", "parquet", "text", "conll", "squad"]

_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".conll": "conll",
    ".md": "text",
    ".rst": "text",
    ".py": "text",
}


class ReadingOptions(BaseModel):
    """How files are read; shared by every source that reads files."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal["auto", "csv", "tsv", "json", "jsonl", "parquet", "text", "conll", "squad"] = "auto"
    """auto: from the file's ending, a final .gz aside. conll gives tokens (first column) and tags (last column);
    squad is JSON with paragraphs and questions."""
    delimiter: str | None = None
    """Between the fields of csv and tsv; comma and tab if not given. Several characters ('||') need quoting: false."""
    header: bool = True
    """Whether the first line of csv and tsv names the columns; false needs column_names."""
    column_names: tuple[str, ...] | None = None
    """Names of the columns of csv and tsv, in place of the header's."""
    quoting: bool | None = None
    """Whether "..." protects delimiters and line ends in csv and tsv; false: quotes are part of the text. Not given:
    they protect, but a quote that swallows tabs and line ends of a tab-separated file is an error."""
    extra_fields: Literal["error", "drop", "join"] = "error"
    """Fields of csv and tsv beyond the last column: an error with file and line; dropped; or joined to the last column,
    delimiters included (needs quoting: false), for lines such as 'LABEL a text with blanks'."""
    infer_numbers: bool = True
    """Whether a csv or tsv column in which every cell is a number becomes int64 or float64; false: all stay text."""
    rows_at: str | None = None
    """Key that holds the rows, where a json file is an object: {"examples": [...]}."""
    text_rows: Literal["line", "paragraph", "file"] = "line"
    """What is one row of a text file: a line (blank ones too), a block between blank lines, or the whole file."""
    encoding: str = "utf-8"
    """A byte-order mark is accepted and removed."""

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        try:
            "".encode(self.encoding)
        except LookupError:
            raise ValueError(
                f"encoding {self.encoding!r} is unknown; write e.g. utf-8, utf-16, latin-1, cp1252"
            ) from None
        if not self.header and self.column_names is None:
            raise ValueError("header: false needs column_names, e.g. [text, label]")
        if self.column_names is not None and len(set(self.column_names)) != len(self.column_names):
            raise ValueError(f"column_names {list(self.column_names)} names a column twice; give each its own name")
        if self.extra_fields == "join" and self.quoting is not False:
            raise ValueError("extra_fields: join needs quoting: false, since joined fields have lost their quotes")
        if self.delimiter is not None and (not self.delimiter or set(self.delimiter) & set('"\r\n')):
            raise ValueError(f"delimiter {self.delimiter!r} cannot separate fields; use e.g. ',' or ';' or '\\t'")
        if self.delimiter is not None and len(self.delimiter) > 1 and self.quoting is not False:
            raise ValueError(f"delimiter {self.delimiter!r} has several characters, which needs quoting: false")
        return self

    def read_file(self, file: str, content: bytes) -> RawTable:
        """The rows of one file.

        Args:
            file: name for messages and origins; its ending decides the format if none is given.
            content: the file's bytes.

        Raises:
            DataError: content that cannot be read, with file and line.
        """
        kind = self._format_of(file)
        content = _unpacked(file, content)
        if not content:
            raise DataError(f"{file} is empty (0 bytes); write the rows to it, or name another file")
        if kind == "parquet":
            return _read_parquet(file, content)
        text = decode(file, content, self.encoding)
        if not text or (kind != "text" and text.isspace()):
            raise DataError(f"{file} is empty (only blanks); write the rows to it, or name another file")
        if kind == "json":
            return read_json(file, text, self.rows_at)
        if kind == "jsonl":
            return read_jsonl(file, text)
        if kind == "conll":
            return read_conll(file, text)
        if kind == "squad":
            return read_squad(file, text)
        if kind == "text":
            return _read_text(file, text, self.text_rows)
        return read_delimited(file, text, self._dialect("\t" if kind == "tsv" else ","))

    def _format_of(self, file: str) -> Format:
        if self.format != "auto":
            return self.format
        path = PurePath(file)
        ending = PurePath(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
        if ending.lower() not in _FORMATS:
            raise DataError(
                f"{file} has the ending {ending!r}, which names no format (known: {', '.join(_FORMATS)}, each also "
                "with .gz); set  data.format"
            )
        return _FORMATS[ending.lower()]

    def _dialect(self, usual_delimiter: str) -> Dialect:
        return Dialect(
            delimiter=self.delimiter or usual_delimiter,
            quoting=self.quoting,
            header=self.header,
            column_names=self.column_names,
            extra_fields=self.extra_fields,
        )


def _unpacked(file: str, content: bytes) -> bytes:
    if not file.lower().endswith(".gz") or not content:
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as problem:
        raise DataError(f"{file} is not a whole gzip file ({problem}); copy or pack it again") from problem


def _read_parquet(file: str, content: bytes) -> RawTable:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as problem:
        raise DataError(
            f"{file} is not a readable Parquet file ({problem}); write it again or correct  data.format"
        ) from problem
    if not len(table):
        raise DataError(f"{file} holds no rows; write at least one")
    return RawTable(file, table, range(1, len(table) + 1))


def _read_text(file: str, text: str, unit: Literal["line", "paragraph", "file"]) -> RawTable:
    if unit == "file":
        return RawTable(file, {"text": [text]}, [1])
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if unit == "line":
        return RawTable(file, {"text": lines}, range(1, len(lines) + 1))
    blocks: list[list[str]] = []
    starts: list[int] = []
    inside = False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            inside = False
            continue
        if not inside:
            blocks.append([])
            starts.append(number)
        blocks[-1].append(line)
        inside = True
    if not blocks:
        raise DataError(f"{file} holds only blank lines; write the rows to it, or name another file")
    return RawTable(file, {"text": ["\n".join(block) for block in blocks]}, starts)
