"""EDA against the paper's description of each edit."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from peftkit.augmentations import Rewriting, augmentations

REWRITING = Rewriting("0", "unused")
TEXT = "a quiet film that never says too much about its two heroes and all of their small plans for good days"
SYNONYMS = {"quiet": ["silent", "calm"], "good": ["fine"], "film": ["picture"]}
WORDS = TEXT.split()


def edited(*texts: str, **options: Any) -> list[str]:
    return augmentations.build({"name": "eda", **options}).rewrite(texts, REWRITING)


def many(**options: Any) -> list[list[str]]:
    """The same text rewritten at two hundred places, so that the draws differ."""
    return [text.split() for text in edited(*[TEXT] * 200, **options)]


@pytest.mark.parametrize(("share", "count"), [(0.1, 2), (0.01, 1), (0.35, 7)])
def test_swap_exchanges_n_pairs_of_words(share: float, count: int) -> None:
    found = many(edits=["swap"], share=share)
    assert all(Counter(words) == Counter(WORDS) for words in found)
    moved = [sum(old != new for old, new in zip(WORDS, words, strict=True)) for words in found]
    assert max(moved) <= 2 * count
    assert max(moved) > 2 * (count - 1), "n swaps can move 2 n words"
    assert len({tuple(words) for words in found}) > 50


def test_deletion_takes_each_word_with_the_given_probability() -> None:
    found = many(edits=["deletion"], share=0.3)
    kept = sum(map(len, found)) / (200 * len(WORDS))
    assert kept == pytest.approx(0.7, abs=0.03)  # 4000 draws: standard deviation 0.007
    assert all(words == [word for word in WORDS if word in words] for words in found if len(set(words)) == len(words))


def test_deletion_leaves_one_word() -> None:
    assert edited("so so good", edits=["deletion"], share=0.999)[0] in ("so", "good")


def test_insertion_adds_n_words_at_any_place() -> None:
    found = many(edits=["insertion"], share=0.1)
    assert {len(words) for words in found} == {len(WORDS) + 2}
    assert {words[0] for words in found} > {"a"}
    assert all(not Counter(WORDS) - Counter(words) for words in found)
    assert all(set(words) == set(WORDS) for words in found), "without a list, words of the text itself"
    listed = many(edits=["insertion"], share=0.1, synonyms=SYNONYMS)
    new = {word for words in listed for word in Counter(words) - Counter(WORDS)}
    assert new == {"silent", "calm", "fine", "picture"}, "synonyms of words that stand in the text"


def test_synonyms_replace_n_words_where_they_stand() -> None:
    found = many(edits=["synonym"], share=0.1, synonyms=SYNONYMS)
    for words in found:
        pairs = [(old, new) for old, new in zip(WORDS, words, strict=True) if old != new]
        assert len(pairs) == 2
        assert all(new in SYNONYMS[old] for old, new in pairs)
    assert {words[1] for words in found} == {"quiet", "silent", "calm"}
    assert edited("Good , good", edits=["synonym"], synonyms=SYNONYMS) == ["fine , fine"]


def test_all_kinds_take_their_turn() -> None:
    found = many(synonyms=SYNONYMS)
    assert {len(words) - len(WORDS) for words in found} > {2, 0, -1}


@pytest.mark.parametrize("text", ["", "  ", "word", "好电影"])
@pytest.mark.parametrize("edits", [["synonym"], ["swap"], ["deletion"]])
def test_texts_that_cannot_be_edited_come_back(text: str, edits: list[str]) -> None:
    assert edited(text, edits=edits) == [text]


def test_blanks_alone_are_no_edit() -> None:
    assert edited("two  words", edits=["synonym"], synonyms={"other": ["one"]}) == ["two  words"]


def test_draws_depend_on_seed_and_place_alone() -> None:
    eda = augmentations.build("eda")
    assert eda.rewrite([TEXT] * 4, REWRITING) == eda.rewrite([TEXT] * 4, REWRITING)
    assert eda.rewrite([TEXT] * 4, REWRITING) != eda.rewrite([TEXT] * 4, Rewriting("1", "unused"))
    assert eda.rewrite(["other", TEXT], REWRITING)[1] == eda.rewrite([TEXT] * 2, REWRITING)[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"synonyms": {"Good": ["fine"]}}, "'Good' has to be in lower case"),
        ({"synonyms": {"good": []}}, "'good' has to be in lower case and to have at least one synonym"),
        ({"edits": ["spelling"]}, "'synonym', 'insertion', 'swap' or 'deletion'"),
        ({"edits": []}, "at least 1 item"),
        ({"share": 0}, "greater than 0"),
        ({"share": 1}, "less than 1"),
        ({"copies": 0}, "greater than or equal to 1"),
        ({"alpha": 0.1}, "Extra inputs are not permitted"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        augmentations.build({"name": "eda", **options})
