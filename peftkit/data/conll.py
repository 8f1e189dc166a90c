"""CoNLL files: one word a line with its tag, sentences between blank lines."""

from __future__ import annotations

from peftkit.data.raw_table import RawTable
from peftkit.errors import DataError

_DOCUMENT = "-DOCSTART-"


def read_conll(file: str, text: str) -> RawTable:
    """A row per sentence: `tokens` from the first column, `tags` from the last; columns end at tabs or blanks.

    Lines of blanks alone separate sentences. Lines that mark documents (-DOCSTART-), and comments (#) of one field or
    before a sentence, hold no word.

    Raises:
        DataError: a line with another number of columns than the first, or with one only.
    """
    tokens: list[list[str]] = []
    tags: list[list[str]] = []
    starts: list[int] = []
    width: int | None = None
    inside = False
    for number, line in enumerate(text.split("\n"), start=1):
        fields = _fields(line)
        if not fields or fields[0] == _DOCUMENT:
            inside = False
            continue
        if not inside and line.startswith("#") and (len(fields) == 1 or len(fields) != (width or len(fields) + 1)):
            continue
        width = width or len(fields)
        if len(fields) != width or width == 1:
            raise DataError(
                f"{file}:{number} has {len(fields)} column(s), {line.strip()[:40]!r}, where "
                f"{'a word and a tag are' if width == 1 else f'the first sentence has {width}, which is'} needed; "
                "correct the line"
            )
        if not inside:
            tokens.append([])
            tags.append([])
            starts.append(number)
            inside = True
        tokens[-1].append(fields[0])
        tags[-1].append(fields[-1])
    if not starts:
        raise DataError(f"{file} holds no sentence; write a word and its tag on each line")
    return RawTable(file, {"tokens": tokens, "tags": tags}, starts)


def _fields(line: str) -> list[str]:
    """Fields between tabs where there are any, so that a word may be a blank; else between blanks."""
    if not line.strip():
        return []
    if "\t" in line:
        return line.rstrip("\r\n").strip("\t").split("\t")
    return line.split()
