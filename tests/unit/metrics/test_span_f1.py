"""Scores of tags, against seqeval."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.scheme import IOB2, IOBES

from peftkit.errors import DataError
from peftkit.metrics import metrics
from peftkit.metrics.bootstrap import bootstrap_intervals

PREFIXES = {"BIO": "BI", "BIOES": "BIES"}


def rows(count: int, seed: int, prefixes: str) -> list[list[str]]:
    """Any sequences of tags, most of them against all rules."""
    draw = random.Random(seed)
    tags = ["O", "O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("person", "place"))]
    return [draw.choices(tags, k=draw.randint(1, 12)) for _ in range(count)]


def near(actual: list[list[str]], seed: int, prefixes: str) -> list[list[str]]:
    draw = random.Random(seed)
    others = rows(len(actual), seed, prefixes)
    return [
        [tag if draw.random() < 0.7 else draw.choice(other) for tag in row]
        for row, other in zip(actual, others, strict=True)
    ]


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
@pytest.mark.parametrize("mode", ["default", "strict"])
def test_span_f1_is_seqevals(scheme: str, mode: str) -> None:
    actual = rows(200, 0, PREFIXES[scheme])
    predicted = near(actual, 1, PREFIXES[scheme])
    strict: Any = {"mode": "strict", "scheme": {"BIO": IOB2, "BIOES": IOBES}[scheme]} if mode == "strict" else {}
    found = metrics.build({"name": "span_f1", "mode": mode, "scheme": scheme}).compute(predicted, actual)
    assert found["span_f1"] == pytest.approx(f1_score(actual, predicted, **strict), abs=1e-12)
    assert found["span_precision"] == pytest.approx(precision_score(actual, predicted, **strict), abs=1e-12)
    assert found["span_recall"] == pytest.approx(recall_score(actual, predicted, **strict), abs=1e-12)
    assert 0 < found["span_f1"] < 1


@pytest.mark.parametrize("mode", ["default", "strict"])
def test_f1_of_each_type_is_seqevals(mode: str) -> None:
    actual = rows(200, 0, "BI")
    predicted = near(actual, 1, "BI")
    strict: Any = {"mode": "strict", "scheme": IOB2} if mode == "strict" else {}
    wanted = classification_report(actual, predicted, output_dict=True, **strict)
    metric = metrics.build({"name": "span_f1", "mode": mode, "by_type": True})
    kinds = {name for name in wanted if " " not in name}
    found = metric.compute(predicted, actual)
    assert len(kinds) > 1
    assert set(found) == {"span_f1", "span_precision", "span_recall", *(f"span_f1_{kind}" for kind in kinds)}
    for kind in kinds:
        assert found[f"span_f1_{kind}"] == pytest.approx(wanted[kind]["f1-score"], abs=1e-12)
    tagged = np.empty((2, 200), object)
    tagged[0], tagged[1] = predicted, actual
    once = metric.resampled(*tagged, np.ones((1, 200)))
    assert {name: values[0] for name, values in once.items()} == pytest.approx(found)


def test_tag_accuracy_counts_words() -> None:
    assert metrics.build("tag_accuracy").compute([["O", "B-a"], ["O"]], [["O", "O"], ["O"]]) == {
        "tag_accuracy": pytest.approx(2 / 3)
    }


@pytest.mark.parametrize("name", ["span_f1", "tag_accuracy"])
def test_intervals_are_those_of_resampled_rows(name: str) -> None:
    metric, draw = metrics.build(name), np.random.default_rng(0)
    actual = np.empty(60, object)
    actual[:] = rows(60, 0, "BI")
    predicted = np.empty(60, object)
    predicted[:] = near(list(actual), 1, "BI")
    samples = [draw.integers(0, 60, 60) for _ in range(400)]
    low, high = np.quantile([metric.compute(predicted[rows], actual[rows])[name] for rows in samples], (0.025, 0.975))
    found = bootstrap_intervals(metric, predicted, actual)[name]
    assert found.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.high == pytest.approx(high, abs=0.15 * (high - low))


@pytest.mark.parametrize(
    ("predicted", "actual", "message"),
    [
        ([], [], "got no rows"),
        ([["O"]], [["O", "O"]], r"row 0 has \['O'\] for \['O', 'O'\]"),
        ([["O"], [1]], [["O"], ["O"]], r"row 1 has \[1\]"),
        ([0], [1], "compares lists of tags"),
    ],
)
def test_rows_that_are_no_tags(predicted: Any, actual: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        metrics.build("span_f1").compute(predicted, actual)
