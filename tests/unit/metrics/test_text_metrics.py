"""Metrics of texts, against sacreBLEU and rouge-score called directly."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf

from peftkit.errors import DataError
from peftkit.metrics import metrics
from peftkit.metrics.bootstrap import bootstrap_intervals

WORDS = ("the", "a", "soup", "film", "was", "is", "cold", "long", "dull", ",", ".", "7", "kind-hearted", "It's")


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(count)]


def near(texts: list[str], seed: int) -> list[str]:
    """The texts with every fourth word another one."""
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS) if draw.random() < 0.25 else word for word in text.split()) for text in texts]


REFERENCES = sentences(200, 0)
PREDICTIONS = near(REFERENCES, 1)


def test_bleu_is_sacrebleus() -> None:
    found = metrics.build("bleu").compute(PREDICTIONS, REFERENCES)
    assert found == {"bleu": corpus_bleu(PREDICTIONS, [REFERENCES]).score}
    lower = metrics.build({"name": "bleu", "lowercase": True, "tokenize": "char"}).compute(PREDICTIONS, REFERENCES)
    assert lower["bleu"] == corpus_bleu(PREDICTIONS, [REFERENCES], lowercase=True, tokenize="char").score


def test_chrf_is_sacrebleus() -> None:
    assert metrics.build("chrf").compute(PREDICTIONS, REFERENCES) == {
        "chrf": corpus_chrf(PREDICTIONS, [REFERENCES]).score
    }
    wide = metrics.build({"name": "chrf", "word_order": 2}).compute(PREDICTIONS, REFERENCES)
    assert wide["chrf"] == corpus_chrf(PREDICTIONS, [REFERENCES], word_order=2).score


def test_several_right_texts_per_row() -> None:
    second = near(REFERENCES, 2)
    rows = [[one] if place % 3 else [one, two] for place, (one, two) in enumerate(zip(REFERENCES, second, strict=True))]
    streams: Any = [REFERENCES, [None if place % 3 else text for place, text in enumerate(second)]]
    assert metrics.build("bleu").compute(PREDICTIONS, rows)["bleu"] == corpus_bleu(PREDICTIONS, streams).score
    assert metrics.build("rouge").compute(["a b"], [["x", "a b"]])["rouge_l"] == 1.0


@pytest.mark.parametrize("stemmer", [False, True])
def test_rouge_is_that_of_its_library(stemmer: bool) -> None:
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(kinds, use_stemmer=stemmer)
    rows = [scorer.score(right, text) for right, text in zip(REFERENCES, PREDICTIONS, strict=True)]
    found = metrics.build({"name": "rouge", "use_stemmer": stemmer}).compute(PREDICTIONS, REFERENCES)
    for kind, name in zip(kinds, ("rouge_1", "rouge_2", "rouge_l", "rouge_lsum"), strict=True):
        assert found[name] == pytest.approx(np.mean([row[kind].fmeasure for row in rows]), abs=1e-12)


@pytest.mark.parametrize("name", ["bleu", "chrf", "rouge", "exact_answer"])
def test_intervals_are_those_of_resampled_rows(name: str) -> None:
    metric, draw = metrics.build(name), np.random.default_rng(0)
    predicted, right = np.array(PREDICTIONS[:60], object), np.array(REFERENCES[:60], object)
    score = metric.score_name
    samples = [draw.integers(0, 60, 60) for _ in range(200)]
    low, high = np.quantile([metric.compute(predicted[rows], right[rows])[score] for rows in samples], (0.025, 0.975))
    found = bootstrap_intervals(metric, predicted, right)[score]
    # 200 draws against 1000: a tenth of the width
    assert found.low == pytest.approx(low, abs=0.15 * (high - low) + 1e-9)
    assert found.high == pytest.approx(high, abs=0.15 * (high - low) + 1e-9)


@pytest.mark.parametrize(
    ("text", "right", "options", "score"),
    [
        ("so 3 + 4 = 7", "#### 7", {}, 1),
        ("about $1,200.", "#### 1200", {}, 1),
        ("7.0", "7", {}, 1),
        ("it is 7, or 8", "7", {}, 0),
        ("I do not know", "7", {}, 0),
        ("", "7", {}, 0),
        ("-3", "3", {}, 0),
        ("-3", "so x = -3", {}, 1),
        ("take away 10-3", "3", {}, 1),
        ("A: 5 B: 6", "A: 5", {"pattern": r"A: (\d)"}, 1),
        ("the answer is (b).", "(b)", {"pattern": r"\((\w)\)"}, 1),
        ("no answer", "no answer", {"pattern": r"\((\w)\)"}, 0),
        (" cold ", "cold", {"whole": True}, 1),
        ("cold.", "cold", {"whole": True}, 0),
    ],
)
def test_exact_answer(text: str, right: str, options: dict[str, Any], score: int) -> None:
    assert metrics.build({"name": "exact_answer", **options}).compute([text], [right]) == {"exact_answer": score}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "("}, "is no regular expression"),
        ({"pattern": r"\d"}, "has 0 groups; put the answer"),
        ({"pattern": r"(\d)", "whole": True}, "remove one"),
    ],
)
def test_patterns_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        metrics.build({"name": "exact_answer", **options})


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "got no rows"),
        (["a"], ["a", "b"], "got 1 predictions for 2 references"),
        ([1], ["a"], "row 0 has the prediction 1 for"),
        (["a", "b"], ["a", 2], "row 1 has the prediction 'b' for 2"),
        (["a"], [[]], r"row 0 has the prediction 'a' for \[\]"),
    ],
)
def test_rows_that_are_no_texts(predictions: Any, references: Any, message: str) -> None:
    for name in ("bleu", "rouge"):
        with pytest.raises(DataError, match=message):
            metrics.build(name).compute(predictions, references)


def test_check_takes_the_first_right_text() -> None:
    metrics.build("rouge").check([["a", "b"], ["c"]])
    with pytest.raises(DataError, match=r"row 0 has the prediction .*3"):
        metrics.build("rouge").check(np.array([3, 4]))
