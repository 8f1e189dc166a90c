"""Schemes of tags: recognised, checked, converted."""

from __future__ import annotations

import pytest

from peftkit.tasks.tag_schemes import Scheme, may_follow, names_of, problem, recognized, spans_of, tags_of

# One sentence, "Anna Berg and Bo , Oslo": two persons, and a place.
SPANS = [("person", 0, 2), ("person", 3, 4), ("place", 5, 6)]
BIO = ["B-person", "I-person", "O", "B-person", "O", "B-place"]
IOB1 = ["I-person", "I-person", "O", "I-person", "O", "I-place"]
BIOES = ["B-person", "E-person", "O", "S-person", "O", "S-place"]


@pytest.mark.parametrize("tags", [BIO, IOB1, BIOES])
def test_every_scheme_says_the_same_spans(tags: list[str]) -> None:
    assert spans_of(tags) == SPANS
    assert tags_of(spans_of(tags), 6, "BIO") == BIO
    assert tags_of(spans_of(tags), 6, "BIOES") == BIOES


def test_spans_that_touch() -> None:
    assert spans_of(["I-a", "B-a", "I-b"]) == [("a", 0, 1), ("a", 1, 2), ("b", 2, 3)]
    assert spans_of(["S-a", "S-a", "B-a", "E-a"]) == [("a", 0, 1), ("a", 1, 2), ("a", 2, 4)]
    assert spans_of([]) == []


@pytest.mark.parametrize(
    ("rows", "scheme"),
    [
        ([BIO], "BIO"),
        ([IOB1], "IOB1"),
        ([["I-a", "B-a"]], "IOB1"),
        ([BIOES], "BIOES"),
        ([["NOUN", "VERB"]], "none"),
        ([["O", "O"]], "none"),
        ([["B-a", "I-a"], ["I-a"]], "BIO"),  # broken in either, so the usual one
        ([["X-a"]], "none"),
        ([["B-a-b", "I-a-b"]], "BIO"),
    ],
)
def test_schemes_are_recognised(rows: list[list[str]], scheme: Scheme) -> None:
    assert recognized(rows) == scheme


@pytest.mark.parametrize(
    ("tags", "scheme", "message"),
    [
        (["O", "I-a"], "BIO", "'I-a' at word 1 may not follow 'O' in the scheme BIO"),
        (["I-a"], "BIO", "'I-a' at word 0 may not follow 'the start'"),
        (["B-a", "I-b"], "BIO", "'I-b' at word 1 may not follow 'B-a'"),
        (["B-a"], "BIOES", "'the end' at the end may not follow 'B-a'"),
        (["B-a", "O"], "BIOES", "'O' at word 1 may not follow 'B-a'"),
        (["S-a", "E-a"], "BIOES", "'E-a' at word 1 may not follow 'S-a'"),
        (["B-a", "S-a"], "BIOES", "'S-a' at word 1 may not follow 'B-a'"),
        (["O", "B-a"], "IOB1", "'B-a' at word 1 may not follow 'O'"),
        (["S-a"], "BIO", "the tag 'S-a' of word 0 is none of the scheme BIO"),
        (["B-"], "BIO", "the tag 'B-' of word 0 is none of the scheme BIO"),
        (["O-a"], "BIO", "the tag 'O-a' of word 0 is none"),
        (["B"], "BIO", "the tag 'B' of word 0 is none"),
    ],
)
def test_broken_tags_are_named(tags: list[str], scheme: Scheme, message: str) -> None:
    assert message in str(problem(tags, scheme))


@pytest.mark.parametrize(
    ("tags", "scheme"), [(BIO, "BIO"), (IOB1, "IOB1"), (BIOES, "BIOES"), (["x"], "none"), ([], "BIO")]
)
def test_sound_tags_have_no_problem(tags: list[str], scheme: Scheme) -> None:
    assert problem(tags, scheme) is None


def test_names_and_steps_agree() -> None:
    names = names_of(["a", "b"], "BIOES")
    assert names == ["O", "B-a", "I-a", "E-a", "S-a", "B-b", "I-b", "E-b", "S-b"]
    assert names_of(["a"], "BIO") == ["O", "B-a", "I-a"]
    after = {name for name in names if may_follow("B-a", name, "BIOES")}
    assert after == {"I-a", "E-a"}
    assert {name for name in names if may_follow(name, None, "BIOES")} == {"O", "E-a", "S-a", "E-b", "S-b"}
    assert {name for name in names if may_follow(None, name, "BIOES")} == {"O", "B-a", "S-a", "B-b", "S-b"}
