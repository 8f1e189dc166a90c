from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from peftkit.data import ORIGIN, sources
from peftkit.data.fingerprint import fingerprint, row_digests
from peftkit.data.splitting import sample

Write = Callable[[str, str | bytes], str]


def load(**options: Any) -> DatasetDict:
    return sources.build({"name": "files", **options}).load().splits


def numbered(count: int) -> list[str]:
    return [f"text number {number},{number % 2}" for number in range(count)]


def csv_of(lines: list[str]) -> str:
    return "\n".join(["text,label", *lines]) + "\n"


def test_sampling_keeps_the_order_and_depends_on_the_seed_alone(write: Write) -> None:
    write("a.csv", csv_of(numbered(200)))
    taken = load(train="a.csv#20")["train"]["text"][:]
    everything = load(train="a.csv")["train"]["text"][:]
    assert len(set(taken)) == 20
    assert taken == [text for text in everything if text in taken]
    assert taken == load(train="a.csv#20")["train"]["text"][:]
    assert taken != load(train="a.csv#20", sample_seed=1)["train"]["text"][:]
    assert taken != everything[:20]


def test_sampling_all_rows_gives_all_rows(write: Write) -> None:
    write("a.csv", csv_of(numbered(7)))
    assert fingerprint(load(train="a.csv#7")["train"]) == fingerprint(load(train="a.csv")["train"])


def test_every_row_is_as_likely_to_be_sampled() -> None:
    rows = Dataset.from_dict({"n": list(range(10))})
    hits = Counter(number for seed in range(100) for number in sample(rows, 5, seed=seed)["n"])
    # 100 draws of probability 1/2: the standard deviation is 5, so 25 is five of them.
    assert all(25 <= hits[number] <= 75 for number in range(10))


def test_where_comes_before_sampling(write: Write) -> None:
    write("a.csv", csv_of(numbered(100)))
    splits = load(train="a.csv#50", where={"label": 1})
    assert splits["train"]["label"][:] == [1] * 50
    assert splits["train"][ORIGIN][0] == "a.csv:3"


def test_where_with_several_columns(write: Write) -> None:
    write("a.csv", "text,part,good\nx,a,yes\ny,a,no\nz,b,yes\n")
    assert load(train="a.csv", where={"part": "a", "good": "yes"})["train"]["text"][:] == ["x"]


def held_out(write: Write, lines: list[str], **options: Any) -> dict[str, set[str]]:
    write("a.csv", csv_of(lines))
    splits = load(train="a.csv", hold_out={"validation": 0.2, "test": 0.1}, **options)
    return {split: set(rows["text"]) for split, rows in splits.items()}


def test_held_out_splits_are_disjoint_complete_and_of_the_asked_size(write: Write) -> None:
    lines = numbered(2000)
    sides = held_out(write, lines)
    assert list(sides) == ["train", "validation", "test"]
    assert sum(map(len, sides.values())) == 2000
    assert set().union(*sides.values()) == {line.split(",")[0] for line in lines}
    # Binomial: standard deviations of 18 and 13 rows; five of them are allowed.
    assert abs(len(sides["validation"]) - 400) < 90
    assert abs(len(sides["test"]) - 200) < 65


def test_adding_and_reordering_rows_moves_no_other_row(write: Write) -> None:
    lines = numbered(300)
    before = held_out(write, lines)
    more = lines + [f"new {number},0" for number in range(100)]
    random.Random(0).shuffle(more)
    after = held_out(write, more)
    assert all(before[split] <= after[split] for split in before)


def test_a_column_that_turns_to_text_moves_no_row(write: Write) -> None:
    lines = numbered(300)
    before = held_out(write, lines)
    after = held_out(write, [*lines, "odd one,unknown"])
    assert all(before[split] <= after[split] for split in before)


def test_duplicates_stay_together(write: Write) -> None:
    sides = held_out(write, numbered(300) * 3)
    assert not sides["train"] & sides["validation"]
    assert not sides["train"] & sides["test"]
    assert not sides["validation"] & sides["test"]


def test_rows_of_a_group_stay_together(write: Write) -> None:
    lines = ["article,text"] + [f"article {number % 40},text {number}" for number in range(400)]
    write("a.csv", "\n".join(lines))
    splits = load(train="a.csv", hold_out={"test": 0.3}, hold_out_by=["article"])
    assert not set(splits["train"]["article"]) & set(splits["test"]["article"])
    assert set(splits["test"]["article"])


def test_another_split_seed_gives_another_split(write: Write) -> None:
    lines = numbered(300)
    assert held_out(write, lines)["test"] != held_out(write, lines, split_seed=1)["test"]


# --- fingerprints ---


ROWS = {"text": ["a", None, "👋 b\u200b"], "label": [1, 2, 3], "tags": [["x"], [], None]}


def test_fingerprint_ignores_origin_chunks_and_column_order() -> None:
    from datasets import concatenate_datasets

    plain = Dataset.from_dict(ROWS)
    with_origin = plain.add_column(ORIGIN, ["f:1", "f:2", "f:3"])
    reordered = plain.select_columns(["tags", "label", "text"])
    pieces = concatenate_datasets([plain.select([0]), plain.select([1, 2])])
    picked = concatenate_datasets([plain, plain]).select([3, 4, 5])
    assert {fingerprint(rows) for rows in (plain, with_origin, reordered, pieces, picked)} == {fingerprint(plain)}


@pytest.mark.parametrize(
    "changed",
    [
        {**ROWS, "text": ["a", "", "👋 b\u200b"]},
        {**ROWS, "text": ["a", None, "👋 b"]},
        {**ROWS, "label": [1, 2, 4]},
        {**ROWS, "label": [2, 1, 3]},
        {**ROWS, "tags": [["x"], [], []]},
        {"text": ROWS["text"], "label": ROWS["label"]},
        {"sentence": ROWS["text"], "label": ROWS["label"], "tags": ROWS["tags"]},
    ],
)
def test_any_change_of_content_changes_the_fingerprint(changed: dict[str, list[Any]]) -> None:
    assert fingerprint(Dataset.from_dict(changed)) != fingerprint(Dataset.from_dict(ROWS))


def test_fingerprint_is_the_documented_digest_of_the_documented_bytes() -> None:
    import hashlib

    def sha256(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    columns = f'[["label", "{sha256("[1, 2]")}"], ["text", "{sha256(chr(91) + chr(34) + "é" + chr(34) + ", null]")}"]]'
    assert fingerprint(Dataset.from_dict({"text": ["é", None], "label": [1, 2]})) == sha256(f"[2, {columns}]")


def test_row_digests_tell_rows_apart_but_not_number_types() -> None:
    whole = list(row_digests(Dataset.from_dict({"a": [1, 1, 2], "b": ["x", "x", "x"]})))
    real = list(row_digests(Dataset.from_dict({"a": [1.0, 1.0, 2.0], "b": ["x", "x", "x"]})))
    text = list(row_digests(Dataset.from_dict({"a": ["1", "1", "2"], "b": ["x", "x", "x"]})))
    assert whole == real == text
    assert whole[0] == whole[1] != whole[2]
    assert list(row_digests(Dataset.from_dict({"a": ["1, x"]}))) != list(row_digests(Dataset.from_dict({"a": ["1"]})))


def test_fingerprint_is_the_same_for_rows_in_many_blocks() -> None:
    numbers = list(range(10_000))
    rows = Dataset.from_dict({"n": numbers})
    assert fingerprint(rows) == fingerprint(Dataset.from_dict({"n": numbers[::-1]}).select(range(9_999, -1, -1)))
    assert fingerprint(rows) != fingerprint(Dataset.from_dict({"n": [*numbers[:-1], -1]}))
