from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from peftkit.report import summary_table
from peftkit.report.scores import chosen_by, main_score
from peftkit.results import HistoryPoint, Interval, RunResult, SplitRecord

_SCORES = SplitRecord(metrics={"f1_macro": 0.5, "accuracy": 0.75}, intervals={"accuracy": Interval(low=0.7, high=0.8)})


@pytest.mark.parametrize(
    ("best_metric", "splits", "expected"),
    [
        ("validation_accuracy", ["validation"], ("validation", "accuracy")),
        ("train_f1_macro", ["test"], ("train", "f1_macro")),
        ("validation_matched_accuracy", ["validation_matched", "test"], ("validation_matched", "accuracy")),
        ("accuracy", ["test"], ("", "accuracy")),
    ],
)
def test_name_of_the_best_metric_is_taken_apart(
    make_run: Any, best_metric: str, splits: list[str], expected: tuple[str, str]
) -> None:
    run = make_run(best_metric=best_metric, splits=dict.fromkeys(splits, _SCORES))
    assert chosen_by(run) == expected


def test_test_split_stands_for_the_run(make_run: Any) -> None:
    run = make_run(splits={"validation": SplitRecord(metrics={"accuracy": 0.9}), "test": _SCORES})
    main = main_score(run)
    assert main is not None
    assert (main.split, main.metric, main.value, main.caveat) == ("test", "accuracy", 0.75, None)
    assert main.interval == Interval(low=0.7, high=0.8)


def test_rows_that_chose_the_checkpoint_are_named_as_such(make_run: Any) -> None:
    main = main_score(make_run(splits={"validation": _SCORES}))
    assert main is not None
    assert (
        main.caveat == "The validation rows also chose the best of 9 checkpoints, which flatters this score a little."
    )
    once = (HistoryPoint(step=10, epoch=1, values={"validation_accuracy": 0.75}),)
    alone = main_score(make_run(splits={"validation": _SCORES}, history=once))
    assert alone is not None
    assert alone.caveat is None


def test_training_rows_are_named_as_such(make_run: Any) -> None:
    main = main_score(make_run(splits={"train": _SCORES}, best_metric="train_accuracy"))
    assert main is not None
    assert (main.split, main.value) == ("train", 0.75)
    assert "Measured on the training rows" in str(main.caveat)


def test_metric_that_a_split_lacks_gives_way_to_its_first(make_run: Any) -> None:
    main = main_score(make_run(best_metric="validation_rougeL", splits={"test": _SCORES}))
    assert main is not None
    assert (main.metric, main.value, main.interval) == ("f1_macro", 0.5, None)


def test_nothing_scored_nothing_stands_for_the_run(make_run: Any) -> None:
    assert main_score(make_run(splits={})) is None
    assert main_score(make_run(splits={"test": SplitRecord(metrics={})})) is None


def _lines(run: RunResult) -> list[list[str]]:
    shown = io.StringIO()
    Console(file=shown, width=100).print(summary_table(run))
    return [line.split() for line in shown.getvalue().splitlines() if line.strip() and "─" not in line]


def test_table_shows_every_score_with_its_interval(make_run: Any) -> None:
    run = make_run(splits={"validation": _SCORES, "test": SplitRecord(metrics={"accuracy": 0.71234})})
    assert _lines(run) == [
        ["split", "metric", "score", "95", "%", "interval"],
        ["validation", "f1_macro", "0.5000"],
        ["accuracy", "0.7500", "0.7000", "to", "0.8000"],
        ["test", "accuracy", "0.7123"],
    ]


def test_table_without_intervals_has_no_column_for_them(make_run: Any) -> None:
    run = make_run(splits={"test": SplitRecord(metrics={"[bold]odd[/bold]": 2.0})})
    assert _lines(run) == [["split", "metric", "score"], ["test", "[bold]odd[/bold]", "2.0000"]]


def test_table_marks_the_score_that_stands_for_the_run(run: RunResult) -> None:
    table = summary_table(run)
    bold = [place for place, row in enumerate(table.rows) if row.style == "bold"]
    assert bold == [3]  # three metrics of validation, then test accuracy
