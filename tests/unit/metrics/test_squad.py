"""Scores of answers, against the rules of SQuAD's script written down again."""

from __future__ import annotations

import random

import pytest

from peftkit.metrics import metrics
from peftkit.metrics.squad import normalized

WORDS = (
    "the",
    "a",
    "An",
    "Oslo",
    "oslo,",
    "1,000",
    "U.S.",
    "cold-blooded",
    "anna's",
    "soup",
    "in",
    "2016",
    "theatre",
    "—",
)


def plain(text: str) -> list[str]:
    """Lower case; no ASCII punctuation; no articles as words; cut at blanks."""
    kept = "".join(character for character in text.lower() if character not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def expected(text: str, right: list[str]) -> tuple[float, float]:
    """Exact match and F1."""
    exact, best = 0.0, 0.0
    for answer in [answer for answer in right if plain(answer)] or [""]:
        one, two = plain(text), plain(answer)
        exact = max(exact, float(one == two))
        left = list(two)
        shared = 0
        for word in one:
            if word in left:
                left.remove(word)
                shared += 1
        if not one or not two:
            best = max(best, float(one == two))
        elif shared:
            precision, recall = shared / len(one), shared / len(two)
            best = max(best, 2 * precision * recall / (precision + recall))
    return exact, best


def test_scores_are_those_of_the_script() -> None:
    draw = random.Random(0)
    said = [" ".join(draw.choices(WORDS, k=draw.randint(0, 5))) for _ in range(200)]
    right = [[" ".join(draw.choices(WORDS, k=draw.randint(0, 5))) for _ in range(draw.randint(1, 3))] for _ in said]
    for place in range(0, 200, 3):
        right[place][0] = said[place].upper() + "."
    rows = [expected(text, answers) for text, answers in zip(said, right, strict=True)]
    found = metrics.build("squad").compute(said, right)
    assert found["exact_match"] == pytest.approx(sum(exact for exact, _ in rows) / 200, abs=1e-12)
    assert found["squad_f1"] == pytest.approx(sum(f1 for _, f1 in rows) / 200, abs=1e-12)
    assert 0.3 < found["exact_match"] < found["squad_f1"] < 1


@pytest.mark.parametrize(
    ("text", "plain_text"),
    [
        ("The  U.S.", "us"),
        ("an apple-a-day", "appleaday"),
        ("a the an", ""),
        ("Theatre", "theatre"),
        ("«Oslo»", "«oslo»"),
        ("a—b", "—b"),
    ],
)
def test_normalized_texts(text: str, plain_text: str) -> None:
    assert normalized(text) == plain_text


def test_no_answer_is_right_only_where_none_is_expected() -> None:
    metric = metrics.build("squad")
    assert metric.compute([""], [[""]]) == {"squad_f1": 1.0, "exact_match": 1.0}
    assert metric.compute(["x"], [[""]]) == {"squad_f1": 0.0, "exact_match": 0.0}
    assert metric.compute([""], [["x"]]) == {"squad_f1": 0.0, "exact_match": 0.0}


def test_right_answers_without_words_count_only_alone() -> None:
    """As in the script of SQuAD 2.0."""
    metric = metrics.build("squad")
    assert metric.compute(["a"], [["the", "cat"]]) == {"squad_f1": 0.0, "exact_match": 0.0}
    assert metric.compute(["a"], [["the", "."]]) == {"squad_f1": 1.0, "exact_match": 1.0}


def test_characters_for_texts_without_blanks() -> None:
    words, characters = metrics.build("squad"), metrics.build({"name": "squad", "unit": "characters"})
    assert words.compute(["北京市"], [["北京"]])["squad_f1"] == 0.0
    assert characters.compute(["北京市"], [["北京"]])["squad_f1"] == pytest.approx(2 * 2 / 5)
    assert characters.compute(["about 2016 年"], [["2016 年"]])["squad_f1"] == pytest.approx(2 * 2 / 5)
