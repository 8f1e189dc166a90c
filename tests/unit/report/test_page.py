from __future__ import annotations

import math
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from peftkit.report import write_report
from peftkit.report.page import render_page
from peftkit.results import DataRecord, HistoryPoint, RunResult, SplitRecord, WorstExample

_VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """A report as a browser without scripts sees it: its text, its tables as lists of rows, every tag with attributes.

    Dashes and special spaces are read as the plain ones.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = source
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def table(self, *header: str) -> list[list[str]]:
        """Body of the one table with this header."""
        (found,) = [rows for rows in self.tables if rows[0] == list(header)]
        return found[1:]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("p", "li", "h1", "h2", "h3", "td", "th", "dd", "dt", "div"):
            self.words.append("\n")

    def handle_data(self, data: str) -> None:
        data = data.replace("\N{EN DASH}", "-")
        if "style" not in self.open:
            self.words.append(data)
            if "td" in self.open or "th" in self.open:
                cell = self.tables[-1][-1]
                cell[-1] = " ".join(f"{cell[-1]} {data}".split())


@pytest.fixture(scope="session")
def page(run: RunResult) -> Page:
    return Page(render_page(run))


def test_top_says_what_was_tuned_on_what_and_how_well(page: Page) -> None:
    top = page.text[: page.text.index("Scores")]
    assert "bert-base-uncased tuned with lora for sequence classification on files: news/" in top
    assert "accuracy on test 0.901 95 % interval 0.888 - 0.913" in top
    assert "Trainable 0.27 % 298.0 k of 109.8 M" in top
    assert "Training time 12 min 34 s 2,250 steps" in top
    assert "flatters" not in top


def test_scores_of_every_split(page: Page) -> None:
    assert page.table("Metric", "test", "validation") == [
        ["accuracy", "0.9014 0.8882 - 0.9135", "0.9124 0.8992 - 0.9245"],
        ["F1 macro", "0.8988 0.8856 - 0.9109", "0.9098 0.8966 - 0.9219"],
        ["matthews correlation", "0.8723 0.8591 - 0.8844", "0.8833 0.8701 - 0.8954"],
    ]
    assert "The weights are those of step 2,000, the best by accuracy on validation." in page.text


def test_evaluations_are_listed_with_the_best_marked(page: Page) -> None:
    rows = page.table("Step", "Epoch", "Train loss", "validation loss", "accuracy", "F1 macro", "matthews correlation")
    assert [row[0] for row in rows] == [f"{step:,}{' best' if step == 2000 else ''}" for step in range(250, 2251, 250)]
    assert rows[0][1] == "0.33"


def test_confusion_matrix_and_classes(run: RunResult, page: Page) -> None:
    detail = run.splits["test"].classification
    assert detail is not None
    matrices = [rows for rows in page.tables if len(rows) > 1 and rows[1][0] == "Actual"]
    assert len(matrices) == 2  # test, and validation folded away
    assert matrices[0][1] == ["Actual", *detail.labels]
    counts = [[int(cell) for cell in row[1:]] for row in matrices[0][2:]]
    assert counts == [list(row) for row in detail.confusion]
    classes = next(rows for rows in page.tables if rows[0] == ["Class", "Precision", "Recall", "F1", "Rows"])
    assert [row[0] for row in classes[1:]] == list(detail.labels)
    assert [int(row[4]) for row in classes[1:]] == list(detail.support)
    assert classes[1][1] == f"{detail.precision[0]:.3f}"
    assert f"{detail.calibration_error:.3f} expected calibration error" in page.text


def test_confidence_is_set_against_accuracy(run: RunResult, page: Page) -> None:
    detail = run.splits["test"].classification
    assert detail is not None
    rows = sum(count for _, _, count in detail.calibration_bins)
    confidence = sum(confidence * count for confidence, _, count in detail.calibration_bins) / rows
    right = sum(row[place] for place, row in enumerate(detail.confusion))
    assert (
        f"The mean confidence is {100 * confidence:.1f} %, the accuracy {100 * right / rows:.1f} %: "
        "the model is underconfident." in page.text
    )


def test_worst_errors_with_text_labels_and_origin(page: Page) -> None:
    assert (
        "7.41 loss actual World predicted Business Oil prices climb as storm shuts Gulf platforms "
        "row 7 · news/test.csv:1841" in page.text
    )
    assert "row 38 7" not in page.text  # a row of unknown origin says nothing of one
    assert "12 more" in page.text


def test_data_and_provenance(page: Page) -> None:
    assert page.table("Split", "Rows", "Fingerprint (SHA-256)") == [
        ["train", "12,000", "1f" * 6],
        ["validation", "1,900", "2e" * 6],
        ["test", "1,900", "3d" * 6],
    ]
    assert "14 rows of split 'train' also stand in 'test'" in page.text
    assert "took the second of 2 sources" in page.text
    assert "bert-base-uncased mirror · 1.0.2 · 77aa77aa77aa the mirror holds a Q4_1 quantized copy" in page.text


def test_cost_method_recipe_and_environment(page: Page) -> None:
    for part in (
        "Training 12 min 34 s Total 13 min 37 s Optimizer steps 2,250 Examples per second 47.7 Peak memory 1.7 GiB",
        "Saved weights 1.1 MiB Parameters 109,781,768 Trainable 297,988 0.27 % of which the new head 3,076 0.003 %",
        "Method lora rank 8 alpha 16 dropout 0.05 target modules query, value bias none",
        "Trained modules (5) bert.encoder.layer.*.attention.self.query.lora_A.default",
        "learning_rate: 0.0003",
        "torch 2.13.0",
        "peftkit 0.1.0 · started 2025-03-04 09:15:27 UTC",
    ):
        assert part in page.text


def test_page_needs_nothing_from_outside(page: Page) -> None:
    # Addresses of XML namespaces are names; nothing else may look like one.
    assert re.findall(r"(?:https?:)?//[\w.-]+", page.source) == []
    loading = [
        (tag, key, attributes[key]) for tag, attributes in page.tags for key in ("src", "href") if key in attributes
    ]
    assert loading == [("link", "href", "data:,")]
    assert {"script", "iframe", "object", "base", "form"}.isdisjoint(tag for tag, _ in page.tags)
    assert "@import" not in page.source
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", page.source)
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert str(policy).startswith("default-src 'none'")


def test_page_is_sound_html(page: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert [name for name, uses in ids.items() if uses > 1] == []
    referred = {str(a["aria-labelledby"]) for _, a in page.tags if "aria-labelledby" in a}
    referred |= {str(a["xlink:href"]).removeprefix("#") for _, a in page.tags if "xlink:href" in a}
    referred |= set(re.findall(r"url\(#([\w-]+)\)", page.source))
    assert referred <= set(ids)
    for rows in page.tables:
        assert len({len(row) for row in rows if row != ["", "Predicted"]}) == 1


def test_page_speaks_to_screen_readers(page: Page) -> None:
    charts = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == 4 + 2 + 2  # learning curves, learning rate and gradient norm, two reliability diagrams
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert page.tags[0][0] == "html"
    assert page.tags[0][1] == {"lang": "en"}


EVIL = "<script>alert(1)</script>"
ATTRIBUTE = "\"><img src=x onerror=alert(1)> ' & ]]>"


def test_text_of_the_user_is_never_markup(make_run: Any, make_many_classes: Any) -> None:
    worst = WorstExample(row=0, origin=EVIL, text=f"{EVIL} {ATTRIBUTE}", reference=ATTRIBUTE, prediction=EVIL, loss=1.0)
    record = make_many_classes([EVIL, ATTRIBUTE], 40).splits["test"].model_copy(update={"worst": (worst,)})
    run = make_run(
        name=f"{EVIL}{ATTRIBUTE}",
        splits={f"test {ATTRIBUTE}": record.model_copy(update={"metrics": {EVIL: 0.5}})},
        data=DataRecord(source=EVIL, rows={ATTRIBUTE: 1}, fingerprint={}, notes=(EVIL,), warnings=(ATTRIBUTE,)),
        history=(HistoryPoint(step=1, epoch=1, values={f"validation_{ATTRIBUTE}": 0.5, EVIL: 1.0}),),
        recipe={"method": {"name": EVIL, EVIL: ATTRIBUTE}, "task": ATTRIBUTE},
        warnings=(EVIL,),
        environment={EVIL: ATTRIBUTE},
        best_metric=f"validation_{ATTRIBUTE}",
        best_step=1,
    )
    page = Page(render_page(run))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "img" not in {tag for tag, _ in page.tags}
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert f"{EVIL} {ATTRIBUTE}" in page.text
    assert page.text.count("alert(1)") > 15


def test_texts_keep_their_direction_and_signs(page: Page) -> None:
    arabic = next(place for place, word in enumerate(page.words) if "مؤشرات" in word)
    assert arabic > 0
    assert "🚀🚀 chip maker to the moon?? 🤔" in page.text
    texts = [attributes for tag, attributes in page.tags if tag == "p" and attributes.get("class") == "text"]
    assert texts
    assert all(attributes["dir"] == "auto" for attributes in texts)


def test_long_texts_are_cut_between_words_and_can_be_unfolded(make_run: Any) -> None:
    text = "word " * 100 + "end"
    worst = WorstExample(row=0, text=text, reference="a", prediction="b", loss=1.0)
    page = Page(render_page(make_run(splits={"test": SplitRecord(metrics={"accuracy": 0.5}, worst=(worst,))})))
    assert "word word … Whole text" in page.text
    assert text in page.text


def test_regression_has_no_class_sections(make_regression: Any) -> None:
    page = Page(render_page(make_regression()))
    assert page.table("Metric", "validation")[2] == ["MSE", "0.5321 0.5121 - 0.5521"]
    assert "pearson on validation 0.871" in page.text
    assert "The validation rows also chose the best of 6 checkpoints" in page.text
    assert "Confusion" not in page.text
    assert "Calibration" not in page.text
    assert "actual 4.800 predicted 0.312 A man plays. ⏎ A plane lands." in page.text


def test_many_classes_are_listed_instead_of_a_matrix(make_many_classes: Any) -> None:
    run = make_many_classes([f"intent {i}" for i in range(150)], 3000, skill=0.0)
    detail = run.splits["test"].classification
    page = Page(render_page(run))
    assert "150 classes are too many for a matrix" in page.text
    confusions = page.table("Actual", "Predicted", "Rows", "Share of the class")
    errors = sorted((c for i, row in enumerate(detail.confusion) for j, c in enumerate(row) if i != j), reverse=True)
    assert errors[0] > errors[19]
    assert [int(row[2]) for row in confusions] == errors[:20]
    name, wrong, rows, share = confusions[0]
    reference, prediction = detail.labels.index(name), detail.labels.index(wrong)
    assert detail.confusion[reference][prediction] == int(rows)
    assert share == f"{100 * int(rows) / sum(detail.confusion[reference]):.1f} %"
    first, rest = [rows[1:] for rows in page.tables if rows[0] == ["Class", "Precision", "Recall", "F1", "Rows"]]
    assert (len(first), len(rest)) == (20, 130)
    listed = [float(row[3]) for row in first]
    assert listed == sorted(listed)
    assert listed[0] == pytest.approx(min(detail.f1), abs=5e-4)


def test_twenty_classes_still_have_a_matrix(make_many_classes: Any) -> None:
    assert "Confusion matrix" in Page(render_page(make_many_classes([f"c{i}" for i in range(20)], 200))).text
    assert "Confusion matrix" not in Page(render_page(make_many_classes([f"c{i}" for i in range(21)], 200))).text


def test_class_without_rows_has_no_recall(make_many_classes: Any) -> None:
    labels = [f"c{i}" for i in range(6)]
    page = Page(render_page(make_many_classes(labels, 3)))
    rows = page.table("Class", "Precision", "Recall", "F1", "Rows")
    absent = [row for row in rows if row[4] == "0"]
    assert len(absent) >= 3
    assert all(row[2] == row[3] == "-" for row in absent)


def test_values_that_are_not_finite_are_told(make_run: Any) -> None:
    history = (
        HistoryPoint(step=1, epoch=0.5, values={"loss": math.nan}),
        HistoryPoint(step=2, epoch=1, values={"loss": math.inf}),
        HistoryPoint(step=2, epoch=1, values={"validation_accuracy": 0.5, "validation_loss": math.nan}),
        HistoryPoint(step=3, epoch=1, values={"validation_accuracy": math.nan}),
    )
    page = Page(render_page(make_run(history=history)))
    assert "Loss No finite value was logged." in page.text
    assert "accuracy on validation" in page.text
    assert "1 value is not finite and left out." in page.text
    assert page.table("Step", "Epoch", "Train loss", "accuracy", "validation loss") == [
        ["2", "1.00", "inf", "0.5000", "nan"],
        ["3", "1.00", "inf", "nan", "-"],
    ]


@pytest.mark.parametrize("history", [(), (HistoryPoint(step=1, epoch=1, values={"loss": 0.5}),)], ids=["none", "one"])
def test_run_without_validation(make_run: Any, history: tuple[HistoryPoint, ...]) -> None:
    run = make_run(
        history=history,
        splits={"train": SplitRecord(metrics={"accuracy": 0.99})},
        data=DataRecord(source="memory", rows={"train": 9}, fingerprint={"train": "00" * 32}),
        best_metric="train_accuracy",
        best_step=1,
        recipe={},
    )
    page = Page(render_page(run))
    assert "Measured on the training rows" in page.text
    assert "The weights are those of the last step: there was no validation split to choose by." in page.text
    assert ("Learning curves" in page.text) == bool(history)
    assert "Values at each evaluation" not in page.text


def test_run_without_scores_is_still_reported(make_run: Any) -> None:
    page = Page(render_page(make_run(splits={})))
    assert "No split was scored." in page.text
    assert "<title>news-topics</title>" in page.source


def test_same_run_same_files(run: RunResult, tmp_path: Path) -> None:
    first = write_report(run, tmp_path)
    assert first == tmp_path / "report.html"
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(contents) == {"report.html", "learning_curve.svg"}
    write_report(RunResult.model_validate_json(run.model_dump_json()), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == contents


def test_failed_writing_leaves_the_old_report(run: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("old")

    def full(path: Path, *args: Any) -> int:
        written = path.write_bytes(b"half")
        if "report" not in path.name:
            return written
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"):
        write_report(run, tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
