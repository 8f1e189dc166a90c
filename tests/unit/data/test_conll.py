"""CoNLL files: sentences between blank lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.data import ORIGIN, sources
from peftkit.errors import DataError

FILE = (
    "-DOCSTART- -X- O\n\n# a comment about the file\nEU NNP B-org\nrejects VBZ O\n \t\nPeter NNP B-person\n# # O\n\n\n"
    "-DOCSTART- -X- O\n\nBo NNP B-person"
)


def load(path: Path, text: str, **options: object) -> list[dict[str, object]]:
    path.write_text(text)
    rows = sources.build({"name": "files", "train": str(path), **options}).load().splits["train"]
    return list(rows)


def test_first_and_last_column_of_every_sentence(tmp_path: Path) -> None:
    rows = load(tmp_path / "a.conll", FILE)
    assert [row["tokens"] for row in rows] == [["EU", "rejects"], ["Peter", "#"], ["Bo"]]
    assert [row["tags"] for row in rows] == [["B-org", "O"], ["B-person", "O"], ["B-person"]]
    assert [str(row[ORIGIN]).rpartition(":")[2] for row in rows] == ["4", "7", "13"]


def test_tabs_separate_where_there_are_any(tmp_path: Path) -> None:
    rows = load(tmp_path / "a.txt", "New York\tB-place\n\u00a0\tO\n\t\nx\tO\n", format="conll")
    assert [row["tokens"] for row in rows] == [["New York", "\u00a0"], ["x"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\n", r"a\.conll:2 has 1 column\(s\), 'b', where the first sentence has 2, which is needed"),
        ("a O\n\nb X O\n", r"a\.conll:3 has 3 column\(s\), 'b X O', where the first sentence has 2"),
        ("word\n", r"a\.conll:1 has 1 column\(s\), 'word', where a word and a tag are needed"),
        ("-DOCSTART- O\n\n", "holds no sentence; write a word and its tag on each line"),
    ],
)
def test_lines_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.conll", text)
