"""Length-grouped order: complete, mixed, repeatable, longest first."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from peftkit.training.batching import LengthGroupedSampler


def lengths_of(rows: int) -> list[int]:
    random = Random(0)
    return [random.randint(3, 60) for _ in range(rows)]


@pytest.mark.parametrize("rows", [1, 7, 8, 41, 1000])
def test_every_epoch_sees_every_row_once(rows: int) -> None:
    sampler = LengthGroupedSampler(lengths_of(rows), 8, seed=0)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == list(range(rows))
    assert len(sampler) == rows


def test_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = lengths_of(300)
    first, again, other = (LengthGroupedSampler(lengths, 8, seed=seed) for seed in (0, 0, 1))
    assert list(first) == list(first) == list(again)
    assert list(first) != list(other)
    first.set_epoch(1)
    again.set_epoch(2)
    assert list(first) != list(again)


def test_first_batch_holds_the_longest_row_and_padding_nearly_vanishes() -> None:
    lengths = lengths_of(1003)
    order = list(LengthGroupedSampler(lengths, 8, seed=3))
    batches = [order[start : start + 8] for start in range(0, len(order), 8)]
    assert max(lengths) == max(lengths[row] for row in batches[0])
    padded = sum(max(lengths[row] for row in batch) * len(batch) for batch in batches)
    assert padded / sum(lengths) < 1.1  # random batches of these lengths: about 1.8


def test_long_and_short_batches_are_mixed() -> None:
    lengths = lengths_of(800)
    order = list(LengthGroupedSampler(lengths, 8, seed=0))
    means = [sum(lengths[row] for row in order[start : start + 8]) / 8 for start in range(8, 800, 8)]
    falls = sum(later < earlier for earlier, later in pairwise(means))
    assert 0.3 < falls / len(means) < 0.7  # sorted batches would always fall
