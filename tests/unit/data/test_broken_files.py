from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import pytest

from peftkit.data import MissingFilesError, sources
from peftkit.errors import DataError

Write = Callable[[str, str | bytes], str]


def load(**options: Any) -> None:
    sources.build({"name": "files", **options}).load()


BROKEN: dict[str, tuple[str, str | bytes, dict[str, Any], str]] = {
    "not utf-8": ("a.csv", b"text\nfa\xe7ade\n", {}, r"a\.csv:2 is not utf-8: byte 0xe7 at offset 7.*data\.encoding"),
    "utf-16": ("a.csv", "text\nx\n".encode("utf-16"), {}, r"a\.csv:1 is not utf-8.*data\.encoding: utf-16"),
    "short row": (
        "a.csv",
        "text,label\nx,1\ny\n",
        {},
        r"a\.csv:3 has 1 fields where 2 are expected \(delimiter ','\): 'y'; write the missing fields",
    ),
    "long row": ("a.csv", "text,label\nx, really,1\n", {}, r"a\.csv:2 has 3 fields where 2 are expected.*extra_fields"),
    "line number after a quoted line end": ("a.csv", 'text,label\n"x\ny",1\nz\n', {}, r"a\.csv:4 has 1 fields"),
    "unclosed quote": (
        "a.csv",
        'text,label\nx,1\n"never closed,2\nz,3\n',
        {},
        r"a\.csv:3 opens a double quote that is never closed",
    ),
    "text after a quote": (
        "a.tsv",
        'text\tlabel\n"Fine" he said\t1\n',
        {},
        r"a\.tsv:2 is not valid quoting.*quoting: false",
    ),
    "quote that swallows rows": (
        "a.tsv",
        'text\tlabel\n"one\t1\ntwo"\t0\n',
        {},
        r"a\.tsv:2 opens a double quote that swallows tabs and line ends up to line 3.*quoting: false",
    ),
    "carriage return": ("a.csv", "text,label\nx\ry,1\n", {}, r"a\.csv:2 has a carriage return outside quotes"),
    "blank line inside": ("a.csv", "text,label\nx,1\n\ny,2\n", {}, r"a\.csv:3 is blank"),
    "blank first line": ("a.csv", "\ntext,label\nx,1\n", {}, r"a\.csv:1 is blank where the header should be"),
    "same column twice": ("a.csv", "text,text\nx,1\n", {}, r"a\.csv:1 names the column 'text' twice"),
    "wrong number of names": (
        "a.csv",
        "text,label\nx,1\n",
        {"column_names": ["text"]},
        r"names 2 columns \(text, label\), but data.column_names gives 1 \(text\)",
    ),
    "header only": ("a.csv", "text,label\n", {}, r"a\.csv has a header but no rows"),
    "header and blank lines": ("a.csv", "text,label\n\n\n", {}, r"a\.csv has a header but no rows"),
    "empty": ("a.csv", "", {}, r"a\.csv is empty \(0 bytes\)"),
    "byte-order mark only": ("a.jsonl", b"\xef\xbb\xbf\n", {}, r"a\.jsonl is empty \(only blanks\)"),
    "blank text": ("a.txt", "\n \n", {"text_rows": "paragraph"}, r"a\.txt holds only blank lines"),
    "json stops in a row": (
        "a.json",
        '[\n{"text": "a"},\n{"text": "b", "label',
        {},
        r"a\.json:3 stops half-way through a JSON value",
    ),
    "json stops between rows": (
        "a.json",
        '[\n{"text": "a"}\n',
        {},
        r"a\.json:\d stops half-way.*expecting ',' or '\]'",
    ),
    "json stops after a comma": ("a.json", '[{"text": "a"},', {}, r"a\.json:1 stops half-way"),
    "json object that stops": ("a.json", '{"a": [1],\n"b": 2', {}, r"a\.json:2 stops half-way"),
    "json is broken": ("a.json", '[\n{"text": "a"},\n{text: "b"}]', {}, r"a\.json:3 is not JSON.*column 2"),
    "json goes on": ("a.json", '[{"text": "a"}]\n[]', {}, r"a\.json:2 is not JSON \(text after the closing"),
    "json lines called json": (
        "a.json",
        '{"text": "a"}\n{"text": "b"}\n',
        {},
        r"a\.json:2 goes on.*data\.format: jsonl",
    ),
    "json object": (
        "a.json",
        '{"version": 1, "examples": [{"text": "a"}]}',
        {},
        r"its keys: version, examples\).*data\.rows_at: examples",
    ),
    "no such key": ("a.json", '{"examples": []}', {"rows_at": "data"}, r"no key 'data' \(it has: examples\)"),
    "no object": ("a.json", '[{"text": "a"}]', {"rows_at": "data"}, r"is no object with the key 'data'"),
    "json text": ("a.json", '"text"', {}, r"a\.json:1 holds no array of rows"),
    "row is no object": ("a.json", '[{"text": "a"},\n"b"]', {}, r'a\.json:2 is "b", not an object'),
    "no rows": ("a.json", "[]", {}, r"a\.json holds no rows"),
    "nan": (
        "a.jsonl",
        '{"label": 1}\n{"label": NaN}\n',
        {},
        r"a\.jsonl:2 is not JSON \(NaN is no JSON value, write null",
    ),
    "deep": ("a.jsonl", "[" * 100_000, {}, r"a\.jsonl:1 is not JSON \(.*recursion"),
    "digits": ("a.jsonl", '{"label": ' + "1" * 5000 + "}", {}, r"a\.jsonl:1 is not JSON \(Exceeds the limit"),
    "bad line": (
        "a.jsonl",
        '{"text": "a"}\n{"text": b}\n',
        {},
        r"a\.jsonl:2 is not JSON \(Expecting value at column 10",
    ),
    "line that stops": ("a.jsonl", '{"text": "a"}\n{"text": "b\n', {}, r"a\.jsonl:2 stops half-way"),
    "two on a line": ("a.jsonl", '{"text": "a"} {"text": "b"}\n', {}, r"a\.jsonl:1 goes on after its first JSON value"),
    "json called json lines": ("a.jsonl", '[{"text": "a"}]\n', {}, r"a\.jsonl:1 starts an array.*data\.format: json"),
    "mixed types": (
        "a.jsonl",
        '{"label": 1}\n{"label": 2}\n{"label": "x"}\n{"label": 3}\n',
        {},
        r"a\.jsonl:3 column 'label': 'x' is str, the rows before it are int64",
    ),
    "mixed types in lists": ("a.jsonl", '{"t": ["a"]}\n{"t": [1]}\n', {}, r"a\.jsonl:2 column 't': \[1\] is list"),
    "list among texts": ("a.json", '[{"t": "a"},\n{"t": ["b"]}]', {}, r"a\.json:2 column 't': \['b'\] is list"),
    "half a surrogate": (
        "a.jsonl",
        '{"t": "a"}\n{"t": "\\ud800"}\n',
        {},
        r"a\.jsonl:2 column 't'.*half of a surrogate",
    ),
    "huge number": ("a.jsonl", '{"t": 1}\n{"t": 99999999999999999999}\n', {}, r"a\.jsonl:2 column 't'.*beyond 64 bits"),
    "reserved column": ("a.jsonl", '{"__origin__": 1}\n', {}, r"a column '__origin__'"),
    "not parquet": ("a.parquet", "text,label\nx,1\n", {}, r"a\.parquet is not a readable Parquet file"),
    "not gzip": ("a.csv.gz", "text\nx\n", {}, r"a\.csv\.gz is not a whole gzip file"),
    "gzip stops": ("a.csv.gz", gzip.compress(b"text\nx\n" * 99)[:-12], {}, r"a\.csv\.gz is not a whole gzip file"),
    "unknown ending": ("a.xlsx", "x", {}, r"ending '\.xlsx', which names no format.*data\.format"),
    "too few rows": ("a.csv", "text\nx\ny\n", {"train": "a.csv#3"}, r"'#3' asks for 3 rows of a\.csv, which has 2"),
    "no rows wanted": ("a.csv", "text\nx\n", {"train": "a.csv#0"}, r"'a\.csv#0' asks for 0 rows"),
    "where without a column": (
        "a.csv",
        "text,part\nx,a\n",
        {"where": {"source": "a"}},
        r"a\.csv has no column 'source' \(it has: text, part\); correct  data\.where",
    ),
    "where without a row": (
        "a.csv",
        "text,part\nx,a\ny,b\n",
        {"where": {"part": "c"}},
        r"no row of a\.csv has 'c' in column 'part' \(it holds: 'a', 'b'\)",
    ),
    "where that excludes all": (
        "a.csv",
        "text,part\nx,a\ny,b\n",
        {"where": {"part": "a", "text": "y"}},
        r"no row of a\.csv meets all of",
    ),
    "held out of too little": (
        "a.csv",
        "text\nx\n",
        {"hold_out": {"test": 0.5, "validation": 0.4}},
        r"hold_out left no row for split '\w+'.*\(1 rows in all\)",
    ),
    "held out by no column": (
        "a.csv",
        "text\nx\n",
        {"hold_out": {"test": 0.5}, "hold_out_by": ["id"]},
        r"no column 'id'",
    ),
    "held out and given": (
        "a.csv",
        "text\nx\n",
        {"hold_out": {"test": 0.5}, "test": "a.csv"},
        r"has its own split 'test'; take it out of  data\.hold_out",
    ),
    "held out of nothing": (
        "a.csv",
        "text\nx\n",
        {"train": None, "test": "a.csv", "hold_out": {"validation": 0.5}},
        r"no split 'train' \(it has: test\)",
    ),
    "folder": (
        "folder/a.csv",
        "text\nx\n",
        {"train": "folder"},
        r"'folder' is a folder; name its files.*folder/\*\.csv",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_input_is_named_with_its_place(write: Write, case: str) -> None:
    name, content, options, message = BROKEN[case]
    write(name, content)
    with pytest.raises(DataError, match=message):
        load(**{"train": name, **options})


@pytest.mark.parametrize(
    ("locator", "message"), [("no.csv", r"no file 'no\.csv' \(in '"), ("data/*.csv", r"no file matches 'data/\*\.csv'")]
)
def test_missing_files_are_told_from_broken_ones(write: Write, locator: str, message: str) -> None:
    write("other.csv", "text\nx\n")
    with pytest.raises(MissingFilesError, match=message):
        load(train=locator)


def test_files_of_one_split_need_the_same_columns(write: Write) -> None:
    write("a.csv", "text,label\nx,1\n")
    write("b.csv", "text,stars\ny,2\n")
    with pytest.raises(DataError, match=r"a\.csv has a column 'label', b\.csv has not"):
        load(train=["a.csv", "b.csv"])


def test_files_of_one_split_need_the_same_types(write: Write) -> None:
    write("a.jsonl", '{"label": 1}\n')
    write("b.jsonl", '{"label": "x"}\n')
    with pytest.raises(DataError, match=r"column 'label' is .*int64.* in a\.jsonl, but .*string.* in b\.jsonl"):
        load(train=["a.jsonl", "b.jsonl"])
