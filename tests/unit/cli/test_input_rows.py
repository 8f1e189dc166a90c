from __future__ import annotations

import io
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peftkit.cli.input_rows import STDIN, InputRow, check_readable, in_chunks, read_rows
from peftkit.errors import DataError


def rows(tmp_path: Path, name: str, content: str | bytes) -> list[tuple[Any, int]]:
    """Values with their lines."""
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    found = []
    for row in read_rows(path):
        file, _, line = row.place.rpartition(":")
        assert file == str(path)
        found.append((row.value, int(line)))
    return found


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"text": "x", "id": 1}\n"plain"\n', [({"text": "x", "id": 1}, 1), ("plain", 2)]),
        ("a.jsonl", '\n{"text": "x"}\n\n\n{"text": "y"}', [({"text": "x"}, 2), ({"text": "y"}, 5)]),
        ("a.ndjson", b'\xef\xbb\xbf"bom"\r\n"windows"\r\n', [("bom", 1), ("windows", 2)]),
        ("a.jsonl", '"line\u2028separator"\n"b"\n', [("line\u2028separator", 1), ("b", 2)]),
        ("a.JSONL", '"x"', [("x", 1)]),
        ("a.csv", "text,label\nx,1\ny,2\n", [({"text": "x", "label": "1"}, 2), ({"text": "y", "label": "2"}, 3)]),
        ("a.csv", 'text\n"two\nlines"\nlast\n', [({"text": "two\nlines"}, 2), ({"text": "last"}, 4)]),
        (
            "a.csv",
            'text,b\r\n"a, ""b""",\r\n\r\nz,1\r\n',
            [({"text": 'a, "b"', "b": ""}, 2), ({"text": "z", "b": "1"}, 4)],
        ),
        ("a.tsv", "text\tb\nx, y\t\n", [({"text": "x, y", "b": ""}, 2)]),
        ("a.txt", "one\n\n  two \n", [("one", 1), ("  two ", 3)]),
        ("a.txt", "", []),
        ("a.csv", "text\n", []),
        ("a.jsonl", "\n\n", []),
    ],
)
def test_files_give_rows_with_their_lines(
    tmp_path: Path, name: str, content: str | bytes, expected: list[tuple[Any, int]]
) -> None:
    assert rows(tmp_path, name, content) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a\.jsonl:2 is not JSON \(.*\); write one object or string a line"),
        ("a.jsonl", "plain words\n", r"a\.jsonl:1 is not JSON"),
        ("a.jsonl", '"x"\n["a", "b"]\n', r"a\.jsonl:2 is \['a', 'b'\]; write an object"),
        ("a.jsonl", "5\n", r"a\.jsonl:1 is 5; write an object"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1 is not JSON"),
        ("a.jsonl", b'"x"\n"\xff"\n', r"a\.jsonl:2 is not UTF-8 \(byte 1 of the line\); save it as UTF-8"),
        ("a.csv", "text,label\nx,1\na,b,c\n", r"a\.csv:3 has 3 cells, the header names 2 \(text, label\)"),
        ("a.csv", "text,label\nx\n", r"a\.csv:2 has 1 cells, the header names 2"),
        ("a.csv", 'text\nfine\n"open\n', r"a\.csv:3 is not valid: unexpected end of data; check its quotes"),
        ("a.csv", 'text\n"a"b\n', r"a\.csv:2 is not valid: .*; check its quotes"),
        ("a.txt", b"fine\n\xe9\n", r"a\.txt:2 is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        rows(tmp_path, name, content)
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


def test_a_file_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file '.*none\.jsonl'"):
        check_readable(tmp_path / "none.jsonl")
    with pytest.raises(
        DataError, match=r"has the ending '\.xlsx'; give one of: \.jsonl, \.ndjson, \.csv, \.tsv, \.txt"
    ):
        check_readable(tmp_path / "a.xlsx")
    with pytest.raises(DataError, match="has the ending ''"):
        check_readable(tmp_path / "a")
    check_readable(STDIN)


def test_standard_input_is_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'"x"\n\n{"text": "y"}\nz\n')))
    reading = read_rows(STDIN)
    assert list(islice(reading, 2)) == [InputRow("x", "stdin:1"), InputRow({"text": "y"}, "stdin:3")]
    with pytest.raises(DataError, match="stdin:4 is not JSON"):
        next(reading)


def test_rows_are_read_only_when_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('"x"\n"y"\nbroken\n')
    chunks = in_chunks(read_rows(path), 2)
    assert [row.value for row in next(chunks)] == ["x", "y"]
    with pytest.raises(DataError, match=r"a\.jsonl:3"):
        next(chunks)


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (3, [3]), (4, [3, 1]), (6, [3, 3])])
def test_chunks_hold_every_row_once_in_order(count: int, sizes: list[int]) -> None:
    given = [InputRow(str(number), "f:1") for number in range(count)]
    chunks = list(in_chunks(given, 3))
    assert [len(chunk) for chunk in chunks] == sizes
    assert [row for chunk in chunks for row in chunk] == given
