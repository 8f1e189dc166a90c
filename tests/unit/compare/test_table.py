"""The comparison as text: terminal, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from peftkit.compare.data_files import comparison_csv, comparison_json, runs_csv
from peftkit.compare.outcome import FILES, write
from peftkit.compare.summary import Comparison
from peftkit.compare.table import markdown, notes, per_example, terminal_tables, verdict, warnings

MakeComparison = Callable[..., Comparison]

SCORES = {"lora": [0.80, 0.82, 0.84], "full": [0.83, 0.83, 0.83], "head_only": [0.60, 0.61, 0.62]}
FAILED = {
    "labels": (*SCORES, "oft"),
    "failures": {"oft": {0: "killed by SIGKILL", 2: "cannot use '/data/me/run': full | disk"}},
    "missing": {"oft": (1,)},
}


@pytest.fixture
def comparison(make_comparison: MakeComparison) -> Comparison:
    facts = {"full": {"method": "full", "trainable": 1_000_000, "saved": 4_000_000}}
    return make_comparison(SCORES, facts=facts, **FAILED)


def printed(comparison: Comparison, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    for table in terminal_tables(comparison, console):
        console.print(table)
    return console.export_text()


def rows(text: str) -> list[str]:
    """Lines of a table, blanks folded and dashes as the plain ones."""
    lines = text.replace("\N{EN DASH}", "-").splitlines()
    return [" ".join(row.split()) for row in lines if row.strip() and "─" not in row]


def test_terminal_table_is_sorted_and_marks_those_that_cannot_be_told_apart(comparison: Comparison) -> None:
    header, *found = rows(printed(comparison, 160))
    assert header == "variant accuracy 95 % interval runs trainable share saved memory train/ex. infer/ex."
    # 0.82 ± 4.30265 * 0.02 / √3 = 0.82 ± 0.04968
    assert found == [
        "full * 0.8300 0.8300 to 0.8300 3/3 1.0 M 100 % 3.8 MiB 800.0 MiB 20.0 ms 2.50 ms",
        "lora * 0.8200 0.7703 to 0.8697 3/3 40.0 k 4.0 % 156.2 KiB 800.0 MiB 20.0 ms 2.50 ms",
        "head_only 0.6100 0.5852 to 0.6348 3/3 40.0 k 4.0 % 156.2 KiB 800.0 MiB 20.0 ms 2.50 ms",
        "oft - - 0/3, 2 failed - - - - - -",
    ]


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_terminal_gets_two_tables_uncut(make_comparison: MakeComparison, width: int) -> None:
    comparison = make_comparison(
        {"bottleneck_houlsby": [0.8, 0.9], "b": [0.1, 0.2]}, labels=("bottleneck_houlsby", "b")
    )
    text = printed(comparison, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    labels = [row.split()[0] for row in rows(text)]
    assert labels == ["variant", "bottleneck_houlsby", "b", "variant", "bottleneck_houlsby", "b"]


def test_a_table_of_thirteen_variants_fits_120_columns_in_one(make_comparison: MakeComparison) -> None:
    comparison = make_comparison({f"bottleneck_houlsby{number}": [0.8, 0.81, 0.79] for number in range(3)})
    text = printed(comparison, 120)
    assert max(map(len, text.splitlines())) <= 120
    assert len(rows(text)) == 4


def test_labels_are_no_markup(make_comparison: MakeComparison) -> None:
    assert "[bold]x" in printed(make_comparison({"[bold]x": [0.5, 0.6], "y": [0.1, 0.2]}), 150)


def test_the_verdict_never_claims_more_than_the_intervals_show(make_comparison: MakeComparison) -> None:
    assert verdict(make_comparison({"a": [0.8, 0.9], "b": [0.85, 0.8], "c": [0.1, 0.1]})) == (
        "not distinguishable from the best mean, because the intervals overlap or there is none: a, b"
    )
    assert verdict(make_comparison({"b": [0.1, 0.11, 0.12], "a": [0.8, 0.81, 0.82]})) == (
        "a has the best accuracy on test; its interval does not overlap that of b"
    )
    assert verdict(make_comparison({"a": [0.8], "b": [0.1]})) == (
        "a has the best mean of one run, which has no interval: it cannot be told apart from the others"
    )
    assert "only variant" in verdict(make_comparison({"a": [0.8, 0.9]}))


def test_everything_that_speaks_against_the_comparison_is_said(make_comparison: MakeComparison) -> None:
    comparison = make_comparison(
        {"a": [0.8, 0.7], "b": [0.6]},
        facts={"b": {"fingerprint": "ab" * 32}, "a": {"warnings": ("this run was resumed",)}},
        labels=("a", "b", "c"),
        failures={"c": {0: "cannot use '/data/me/run': " + "x" * 300}},
        missing={"b": (1,), "c": (1,)},
    )
    found = list(warnings(comparison))
    assert found[0] == (
        "the runs differ in data of train (SHA-256): these scores do not compare: 1f1f1f1f1f1f (a); abababababab (b)"
    )
    assert found[1].startswith("a variant with one finished run has no interval")
    assert found[2].startswith("c, seed 0 failed: cannot use 'run': ")
    assert len(found[2]) < 280
    assert found[3:] == [
        "b: 1 of 2 runs not made yet",
        "c: 1 of 2 runs not made yet",
        "a, seeds 0, 1: this run was resumed",
    ]
    assert [note for note in notes(comparison) if note.startswith("WARNING: ")] == [
        f"WARNING: {text}" for text in found
    ]


def test_a_sound_comparison_has_no_warnings(make_comparison: MakeComparison) -> None:
    assert list(warnings(make_comparison(SCORES))) == []


def test_markdown_holds_the_tables_and_escapes_what_would_break_them(comparison: Comparison) -> None:
    text = markdown(comparison)
    assert text.startswith("# methods\n\n| variant | accuracy | 95 % interval | runs |")
    assert "\n| full \\* | 0.8300 | 0.8300 to 0.8300 | 3/3 | 1.0 M | 100" in text
    assert "\n| lora | 0.8000 | 0.8200 | 0.8400 |\n" in text
    assert "cannot use 'run': full \\| disk" in text
    assert "| lora \\* | lora | 38,000 | 2,000 | 75 (2 epochs) | 0.001 |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {11, 7, 5}
    assert "- data of train (SHA-256): 1f1f1f1f1f1f" in text


def test_csv_files_hold_plain_numbers(comparison: Comparison) -> None:
    variants = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    assert [row["variant"] for row in variants] == ["full", "lora", "head_only", "oft"]
    assert float(variants[1]["mean"]) == pytest.approx(0.82)
    assert float(variants[1]["low"]) == pytest.approx(0.82 - 4.30265 * 0.02 / 3**0.5, abs=1e-6)
    assert variants[1]["scores"] == "0:0.8 1:0.82 2:0.84"
    assert (variants[3]["finished"], variants[3]["failed"], variants[3]["mean"]) == ("0", "2", "")
    runs = list(csv.DictReader(io.StringIO(runs_csv(comparison))))
    assert len(runs) == 12
    assert [(row["variant"], row["seed"], row["state"]) for row in runs[-3:]] == [
        ("oft", "0", "failed"),
        ("oft", "1", "missing"),
        ("oft", "2", "failed"),
    ]
    assert runs[-1]["reason"] == "cannot use 'run': full | disk"
    assert (runs[1]["test_accuracy"], runs[1]["train_seconds_per_example"]) == ("0.82", "0.02")


def test_json_holds_everything_and_no_path(comparison: Comparison) -> None:
    text = comparison_json(comparison)
    content = json.loads(text)
    assert "/data" not in text
    assert content["not_distinguishable_from_best"] == ["full", "lora"]
    assert content["without_result"] == ["oft"]
    assert [variant["variant"] for variant in content["variants"]] == ["full", "lora", "head_only"]
    assert content["variants"][1]["training"]["learning_rate"] == 1e-3
    assert content["variants"][1]["scores"] == {"0": 0.8, "1": 0.82, "2": 0.84}
    assert [run["state"] for run in content["runs"]].count("finished") == 9


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "\N{EN DASH}"), (0.000421, "0.42 ms"), (0.0123, "12.3 ms"), (0.25, "250 ms"), (1.2, "1.20 s")],
)
def test_times_per_example_are_readable(seconds: float | None, shown: str) -> None:
    assert per_example(seconds) == shown


def test_every_file_is_written_whole(comparison: Comparison, tmp_path: Path) -> None:
    written = write(comparison, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written} == {*FILES}
    before = {path.name: path.read_bytes() for path in written}
    write(comparison, tmp_path)
    assert {path.name: path.read_bytes() for path in written} == before
