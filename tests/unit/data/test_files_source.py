from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import DatasetDict
from pyarrow import parquet
from pydantic import ValidationError

from peftkit.data import ORIGIN, LoadedData, sources
from peftkit.errors import DataError

Write = Callable[[str, str | bytes], str]


def load(**options: Any) -> LoadedData:
    return sources.build({"name": "files", **options}).load()


def rows_of(splits: DatasetDict, split: str = "train") -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != ORIGIN} for row in splits[split]]


def train_rows(**options: Any) -> list[dict[str, Any]]:
    return rows_of(load(**options).splits)


def test_csv_keeps_quoted_line_ends_delimiters_and_the_text_na(write: Write) -> None:
    write("a.csv", 'text,label\n"one, ""two""\nthree",pos\nNA,null\nlast,neg\n')
    loaded = load(train="a.csv")
    assert rows_of(loaded.splits) == [
        {"text": 'one, "two"\nthree', "label": "pos"},
        {"text": "NA", "label": "null"},
        {"text": "last", "label": "neg"},
    ]
    assert loaded.splits["train"][ORIGIN][:] == ["a.csv:2", "a.csv:4", "a.csv:5"]


def test_the_record_has_the_digest_of_the_file(write: Write) -> None:
    content = "text\nhello\n"
    write("a.csv", content)
    loaded = load(train="a.csv")
    (record,) = loaded.artifacts
    assert (record.locator, record.origin) == ("a.csv", "local")
    assert record.sha256 == hashlib.sha256(content.encode()).hexdigest()
    assert loaded.source == "files (train: a.csv)"


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-20", "0"], [1, -20, 0]),
        (["1", "2.50", "-1e-3"], [1.0, 2.5, -0.001]),
        (["1", "", "3"], [1, None, 3]),
        (["1", "x"], ["1", "x"]),
        (["007", "8"], ["007", "8"]),
        (["1_000", "2"], ["1_000", "2"]),
        (["nan", "1.5"], ["nan", "1.5"]),
        (["+1", "2"], ["+1", "2"]),
        (["12345678901234567890", "1"], ["12345678901234567890", "1"]),
        (["\u0661", "2"], ["\u0661", "2"]),
        (["True", "False"], ["True", "False"]),
        ([" 1", "2"], [" 1", "2"]),
    ],
)
def test_csv_numbers_are_inferred_only_where_nothing_is_lost(
    write: Write, cells: list[str], expected: list[object]
) -> None:
    write("a.csv", "id,value\n" + "".join(f"x,{cell}\n" for cell in cells))
    values = [row["value"] for row in train_rows(train="a.csv")]
    assert values == expected
    assert {type(value) for value in values} == {type(value) for value in expected}


def test_column_types_are_settled_over_all_splits(write: Write) -> None:
    write("a.csv", "text,label\nx,1\ny,2\n")
    write("b.csv", "text,label\nz,unknown\n")
    splits = load(train="a.csv", test="b.csv").splits
    assert splits["train"]["label"][:] == ["1", "2"]


def test_infer_numbers_false_keeps_cells_as_written(write: Write) -> None:
    write("a.csv", "label\n1\n2.50\n")
    assert train_rows(train="a.csv", infer_numbers=False) == [{"label": "1"}, {"label": "2.50"}]


def test_empty_cells_are_none_and_a_wholly_empty_column_is_text(write: Write) -> None:
    write("a.csv", "text,note\nx,\ny,\n")
    splits = load(train="a.csv").splits
    assert rows_of(splits) == [{"text": "x", "note": None}, {"text": "y", "note": None}]
    assert splits["train"].features["note"].dtype == "string"


def test_delimiters_header_and_names(write: Write) -> None:
    write("a.txt", "good film;1\nbad film;0\n")
    options = {"format": "csv", "delimiter": ";", "header": False, "column_names": ["text", "label"]}
    assert train_rows(train="a.txt", **options) == [{"text": "good film", "label": 1}, {"text": "bad film", "label": 0}]
    write("b.csv", "a,b\nx,1\n")
    assert train_rows(train="b.csv", column_names=["text", "label"]) == [{"text": "x", "label": 1}]


def test_the_rest_of_the_line_can_join_the_last_column(write: Write) -> None:
    write("trec.all", 'ABBR What is "AIDS" ?\nNUM How many , really ?\n')
    rows = train_rows(
        train="trec.all",
        format="csv",
        delimiter=" ",
        quoting=False,
        extra_fields="join",
        header=False,
        column_names=["label", "text"],
    )
    assert rows == [{"label": "ABBR", "text": 'What is "AIDS" ?'}, {"label": "NUM", "text": "How many , really ?"}]


def test_joining_takes_the_number_of_columns_from_the_header(write: Write) -> None:
    write("a.tsv", "label\ttext\nx\tone\ttwo\n")
    rows = train_rows(train="a.tsv", quoting=False, extra_fields="join")
    assert rows == [{"label": "x", "text": "one\ttwo"}]


def test_extra_fields_can_be_dropped(write: Write) -> None:
    write("a.tsv", "text\tlabel\nx\t1\tlicence\ty\nz\t0\n")
    assert train_rows(train="a.tsv", extra_fields="drop") == [{"text": "x", "label": 1}, {"text": "z", "label": 0}]


def test_several_characters_can_delimit(write: Write) -> None:
    write("a.txt", "name : A | area : B||A is in B .\n")
    rows = train_rows(
        train="a.txt", format="csv", delimiter="||", quoting=False, header=False, column_names=["data", "text"]
    )
    assert rows == [{"data": "name : A | area : B", "text": "A is in B ."}]


def test_quoting_false_takes_quotes_as_text(write: Write) -> None:
    write("a.tsv", 'text\tlabel\n"We drive around\t1\nand "stop" there"\t0\n')
    rows = train_rows(train="a.tsv", quoting=False)
    assert rows == [{"text": '"We drive around', "label": 1}, {"text": 'and "stop" there"', "label": 0}]


def test_line_ends_bom_and_trailing_blank_lines(write: Write) -> None:
    write("a.csv", b"\xef\xbb\xbftext,label\r\nx,1\r\ny,2\r\n\r\n\r\n")
    assert train_rows(train="a.csv") == [{"text": "x", "label": 1}, {"text": "y", "label": 2}]
    assert train_rows(train="a.csv", quoting=False) == [{"text": "x", "label": 1}, {"text": "y", "label": 2}]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings(write: Write, encoding: str) -> None:
    write("a.csv", "text\nfaçade ð\n".encode(encoding))
    assert train_rows(train="a.csv", encoding=encoding) == [{"text": "façade ð"}]


def test_gzip_is_transparent(write: Write) -> None:
    write("a.csv.gz", gzip.compress(b"text\nhello\n"))
    loaded = load(train="a.csv.gz")
    assert loaded.splits["train"][0] == {"text": "hello", ORIGIN: "a.csv.gz:2"}


NAUGHTY = [
    "\u200b",
    "\u202eright to left",
    "a\x00b",
    "\x07",
    "👩‍👩‍👧‍👦",
    "Z̴̈́a",
    "\u2028line",
    "\x85next",
    "'; DROP",
    "a\rb",
]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_naughty_text_survives_structured_formats(write: Write, suffix: str) -> None:
    if suffix == "jsonl":
        write("a.jsonl", "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in NAUGHTY))
    elif suffix == "json":
        write("a.json", json.dumps([{"text": text} for text in NAUGHTY]))
    else:
        sink = io.BytesIO()
        parquet.write_table(pa.table({"text": NAUGHTY}), sink)
        write("a.parquet", sink.getvalue())
    assert [row["text"] for row in train_rows(train=f"a.{suffix}")] == NAUGHTY


def test_naughty_text_survives_csv_and_text(write: Write) -> None:
    write("a.csv", "text\n" + "".join(f'"{text}"\n' for text in NAUGHTY))
    assert [row["text"] for row in train_rows(train="a.csv")] == NAUGHTY
    write("a.txt", "\n".join(NAUGHTY))
    assert [row["text"] for row in train_rows(train="a.txt")] == NAUGHTY


def test_a_field_may_be_longer_than_the_csv_module_allows_by_default(write: Write) -> None:
    write("a.csv", "text\n" + "x" * 200_000 + "\n")
    assert len(train_rows(train="a.csv")[0]["text"]) == 200_000


def test_json_array_with_lines(write: Write) -> None:
    write("a.json", '[\n {"text": "a",\n  "label": 1},\n\n {"text": "b", "label": 2.5}\n]\n')
    splits = load(train="a.json").splits
    assert rows_of(splits) == [{"text": "a", "label": 1.0}, {"text": "b", "label": 2.5}]
    assert splits["train"][ORIGIN][:] == ["a.json:2", "a.json:5"]


def test_json_rows_under_a_key(write: Write) -> None:
    write("a.json", '{"version": {"x": [1]},\n "examples": [\n{"text": "a"}, {"text": "b"}], "end": 1}')
    splits = load(train="a.json", rows_at="examples").splits
    assert rows_of(splits) == [{"text": "a"}, {"text": "b"}]
    assert splits["train"][ORIGIN][:] == ["a.json:3", "a.json:3"]


def test_nested_json_survives_and_missing_keys_are_none(write: Write) -> None:
    lines = [
        {"tokens": ["A", "b"], "tags": [1, 0], "meta": {"a": 1}, "calls": [{"x": 1}, {"y": "z"}]},
        {"tokens": [], "tags": [], "meta": {"b": [True]}, "note": "n"},
    ]
    write("a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert train_rows(train="a.jsonl") == [
        {**lines[0], "note": None},
        {**lines[1], "calls": None},
    ]


def test_objects_of_one_shape_stay_structured(write: Write) -> None:
    write("a.jsonl", '{"chat": [{"role": "user", "content": "hi"}]}\n')
    splits = load(train="a.jsonl").splits
    assert splits["train"].features["chat"].feature["role"].dtype == "string"


def test_blank_lines_of_jsonl_hold_no_row_but_count(write: Write) -> None:
    write("a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n')
    assert load(train="a.jsonl").splits["train"][ORIGIN][:] == ["a.jsonl:1", "a.jsonl:3"]


@pytest.mark.parametrize(
    ("unit", "texts", "lines"),
    [
        ("line", ["one", "two", "", "three"], [1, 2, 3, 4]),
        ("paragraph", ["one\ntwo", "three"], [1, 4]),
        ("file", ["one\ntwo\n\nthree\n"], [1]),
    ],
)
def test_rows_of_a_text_file(write: Write, unit: str, texts: list[str], lines: list[int]) -> None:
    write("a.txt", "one\ntwo\n\nthree\n")
    splits = load(train="a.txt", text_rows=unit).splits
    assert splits["train"]["text"][:] == texts
    assert splits["train"][ORIGIN][:] == [f"a.txt:{line}" for line in lines]


def test_parquet_keeps_its_types_and_label_names(write: Write, tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    write("x.txt", "")
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(tmp_path / "a.parquet")
    splits = load(train="a.parquet").splits
    assert splits["train"].features["label"].names == ["neg", "pos"]
    assert splits["train"][ORIGIN][:] == ["a.parquet:1", "a.parquet:2"]


def test_globs_and_lists_are_read_in_order(write: Write) -> None:
    write("data/b.csv", "text\nb\n")
    write("data/a.csv", "text\na\n")
    write("more.csv", "text\nc\n")
    loaded = load(train=["data/*.csv", "more.csv"])
    assert loaded.splits["train"]["text"][:] == ["a", "b", "c"]
    assert loaded.splits["train"][ORIGIN][:] == ["data/a.csv:2", "data/b.csv:2", "more.csv:2"]


def test_a_name_with_brackets_is_no_pattern(write: Write) -> None:
    write("a[1].csv", "text\nx\n")
    assert train_rows(train="a[1].csv") == [{"text": "x"}]


def test_test_alone_is_enough_and_home_is_expanded(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.csv", "text\nx\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert rows_of(load(test="~/a.csv").splits, "test") == [{"text": "x"}]


# --- columns ---


def test_columns_are_renamed_and_shadowed_ones_give_way(write: Write) -> None:
    write("a.csv", "text,body,stars\nold,new,5\n")
    assert train_rows(train="a.csv", columns={"text": "body"}) == [{"text": "new", "stars": 5}]


def test_columns_can_swap(write: Write) -> None:
    write("a.csv", "text,label\nL,T\n")
    assert train_rows(train="a.csv", columns={"text": "label", "label": "text"}) == [{"label": "L", "text": "T"}]


def test_one_column_can_feed_two(write: Write) -> None:
    write("a.csv", "sentence,label\nS,1\n")
    rows = train_rows(train="a.csv", columns={"text": "sentence", "text_pair": "sentence"})
    assert rows == [{"text": "S", "label": 1, "text_pair": "S"}]
    write("b.jsonl", '{"text": [{"a": 1}, {"b": 2}]}\n')
    rows = train_rows(train="b.jsonl", columns={"text": "text", "other": "text"})
    assert rows == [{"text": [{"a": 1}, {"b": 2}], "other": [{"a": 1}, {"b": 2}]}]


# --- options that cannot be meant ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name at least one of train, validation, test"),
        ({"train": "a.csv", "header": False}, "header: false needs column_names"),
        ({"train": "a.csv", "encoding": "utf-9"}, "encoding 'utf-9' is unknown"),
        ({"train": "a.csv", "encoding": "base64"}, "encoding 'base64' is unknown"),
        ({"train": "a.csv", "extra_fields": "join"}, "extra_fields: join needs quoting: false"),
        ({"train": "a.csv", "delimiter": "||"}, "has several characters, which needs quoting: false"),
        ({"train": "a.csv", "delimiter": ""}, "delimiter '' cannot separate fields"),
        ({"train": "a.csv", "column_names": ["a", "a"]}, "names a column twice"),
        ({"train": "a.csv", "hold_out": {"validation": 0.6, "test": 0.4}}, "must add up to less than 1"),
        ({"train": "a.csv", "hold_out": {"dev": 0.1}}, "'validation' or 'test'"),
        ({"train": "a.csv", "hold_out": {"test": 0}}, "greater than 0"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        sources.build({"name": "files", **options})


def test_the_recipe_form_builds_an_equal_source() -> None:
    source = sources.build({"name": "files", "train": ["a.csv", "b.csv#10"], "hold_out": {"test": 0.1}})
    assert sources.build(json.loads(json.dumps(source.spec()))) == source


def test_a_missing_column_is_named_with_those_that_exist(write: Write) -> None:
    write("a.csv", "body,stars\nx,1\n")
    with pytest.raises(DataError, match=r"has no column 'sentence' \(it has: body, stars\).*data\.columns\.text"):
        load(train="a.csv", columns={"text": "sentence"})
