from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peftkit.cli.entry import main
from peftkit.cli.prediction import _readable_lines

TEXTS = ["a good film", "a bad soup", "", "kind " * 60, "[bold]kind[/bold] ä"]


def predict(*arguments: object) -> int:
    return main(["predict", *map(str, arguments)])


def test_texts_are_answered_with_label_and_probability(
    finished_run: Path, answers_by_hand: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = answers_by_hand(TEXTS)
    assert predict(finished_run, *TEXTS) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == len(TEXTS)
    for line, text in zip(lines, TEXTS, strict=True):
        label, probability, *rest = line.split("  ", 2)
        positive = expected[text]
        assert label == ("positive" if positive > 0.5 else "negative")
        assert float(probability) == pytest.approx(max(positive, 1 - positive), abs=6e-4)
        assert rest == [text]
    assert len({line.split("  ")[1] for line in lines}) > 1
    assert captured.err == ""


def test_json_gives_one_object_per_text(
    finished_run: Path, answers_by_hand: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(finished_run, *TEXTS, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    expected = answers_by_hand(TEXTS)
    for row in rows:
        assert row["probabilities"]["positive"] == pytest.approx(expected[row["text"]], abs=1e-5)
        assert row["probabilities"][row["label"]] == row["probability"] == max(row["probabilities"].values())


def test_merging_the_adapter_changes_no_answer(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(finished_run, *TEXTS, "--json") == 0
    unmerged = [json.loads(line)["probability"] for line in capsys.readouterr().out.splitlines()]
    assert predict(finished_run, *TEXTS, "--json", "--merge", "--device", "cpu", "--batch-size", 2) == 0
    merged = [json.loads(line)["probability"] for line in capsys.readouterr().out.splitlines()]
    assert merged == pytest.approx(unmerged, abs=1e-5)


def test_a_file_keeps_its_rows_and_order_beside_the_answers(
    finished_run: Path, answers_by_hand: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": number, "text": text, "label": "unsure"} for number, text in enumerate(TEXTS)]
    source, target = tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl"
    source.write_text("\n\n".join(json.dumps(row) for row in rows) + '\n"only text"\n', "utf-8")
    assert predict(finished_run, "--file", source, "--out", target, "--batch-size", 2) == 0
    assert capsys.readouterr().out == ""
    *answers, last = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    expected = answers_by_hand(TEXTS)
    for row, answer in zip(rows, answers, strict=True):
        assert row.items() <= answer.items()
        assert answer["probabilities"]["positive"] == pytest.approx(expected[row["text"]], abs=1e-5)
        assert answer["predicted_label"] in ("negative", "positive")
    assert last["text"] == "only text"
    assert last["label"] in ("negative", "positive")
    assert [path.name for path in target.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("in.csv", "id,text\n1,a good film\n2,a bad soup\n"), ("in.tsv", "id\ttext\n1\ta good film\n2\ta bad soup\n")],
)
def test_tables_keep_their_columns(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    assert predict(finished_run, "--file", tmp_path / name) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["id"], row["text"]) for row in rows] == [("1", "a good film"), ("2", "a bad soup")]


def test_standard_input_to_standard_output(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'"a good film"\n{"text": "a bad soup"}\n')))
    assert predict(finished_run, "--file", "-") == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["a good film", "a bad soup"]


def test_pairs_come_as_rows(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "pairs.jsonl"
    source.write_text('{"text": "a good film", "text_pair": "a bad soup"}\n{"text": "a", "text_pair": "b"}\n')
    assert predict(finished_run, "--file", source) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["text_pair"] == "a bad soup"


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("in.jsonl", ['{"text": "x"}', '{"txt": "y"}'], r"in.jsonl:2: "),
        ("in.jsonl", ['{"text": "x"}', "{'text': 'y'}"], r"in.jsonl:2 is not JSON"),
        ("in.jsonl", ['{"text": "x"}', "", '{"text": 5}'], r"in.jsonl:3: "),
        ("in.csv", ["body", "x"], r"in.csv:2: "),
        ("in.jsonl", ['"x"', '{"text": "y", "text_pair": "z"}'], "in.jsonl:1 and the rows after it: some inputs are"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(
    finished_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    lines: list[str],
    message: str,
) -> None:
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "out.jsonl").write_text("of before\n")
    assert predict(finished_run, "--file", tmp_path / name, "--out", tmp_path / "out.jsonl") == 3
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert (tmp_path / "out.jsonl").read_text() == "of before\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({name, "out.jsonl"})


def test_rows_are_answered_in_chunks(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("peftkit.cli.prediction._CHUNK", 2)
    (tmp_path / "in.txt").write_text("one\ntwo\nthree\nfour\nfive\n")
    assert predict(finished_run, "--file", tmp_path / "in.txt") == 0
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == [
        "one", "two", "three", "four", "five",
    ]  # fmt: skip
    with (tmp_path / "in.txt").open("ab") as stream:
        stream.write(b"\xff\n")
    assert predict(finished_run, "--file", tmp_path / "in.txt") == 3
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 4  # two whole chunks; the third holds the bad line
    assert "in.txt:6 is not UTF-8" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give texts, or rows with --file FILE"),
        (["text", "--file", "a.jsonl"], 2, "give texts, or rows with --file FILE"),
        (["text", "--out", "b.jsonl"], 2, "--out belongs to --file"),
        (["--file", "a.jsonl", "--out", "a.jsonl"], 2, "--out would overwrite the input"),
        (["--file", "none.jsonl"], 3, "there is no file 'none.jsonl'"),
        (["--file", "a.xlsx"], 3, "'a.xlsx' has the ending '.xlsx'; give one of: .jsonl"),
    ],
)
def test_contradictions_are_refused(
    finished_run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert predict(finished_run, *arguments) == code
    assert message in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(tmp_path, "text") == 5
    assert "holds no finished run" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_refused(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(finished_run, "text", "--device", "tpu") == 4
    assert "device 'tpu' cannot be used here" in capsys.readouterr().err


def test_readable_lines_stand_in_columns() -> None:
    answers = [
        {"label": "ok", "probability": 0.5, "probabilities": {"ok": 0.5}},
        {"label": "excellent", "probability": 0.98765, "probabilities": {"ok": 0.0}},
    ]
    assert _readable_lines(["a", "b c"], answers) == ["ok         0.500  a", "excellent  0.988  b c"]
    assert _readable_lines(["a"], [{"labels": ["x", "y"], "probabilities": {}}]) == ["x, y  a"]
    assert _readable_lines(["a", "b"], [{"labels": []}, {"labels": ["x"]}]) == ["(none)  a", "x       b"]
    assert _readable_lines(["a", "b"], [{"value": -1.25}, {"value": 10.0}]) == ["-1.250  a", "10.000  b"]
