"""Batches of so many tokens: every row once, within the budget, with the gradients of any other batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from peftkit.recipe import Recipe
from peftkit.training import RunOptions, resume, run
from peftkit.training.batching import TokenBatches

MakeRecipe = Callable[..., Recipe]
RunCut = Callable[[Recipe, Path, int], str]
QUIET = RunOptions(show_progress=False)
ADAPTER = Path("adapter", "adapter_model.safetensors")


def lengths_of(rows: int) -> list[int]:
    random = Random(0)
    return [random.randint(3, 60) for _ in range(rows)]


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_batches_of_tokens_hold_every_row_once_within_the_budget(rows: int, by_length: bool) -> None:
    lengths = lengths_of(rows)
    batches = TokenBatches(lengths, 200, epochs=4, by_length=by_length, seed=0)
    epochs = [batches.of_epoch(epoch) for epoch in range(4)]
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == list(range(rows))
        assert all(0 < sum(lengths[row] for row in batch) <= 200 for batch in epoch)
        assert len(epoch) == batches.count
    padded = [len(batch) * max(lengths[row] for row in batch) for batch in epochs[0]]
    assert padded[0] == max(padded)
    again = TokenBatches(lengths, 200, epochs=4, by_length=by_length, seed=0)
    assert [again.of_epoch(epoch) for epoch in reversed(range(4))] == epochs[::-1]
    if rows == 1000:
        other = TokenBatches(lengths, 200, epochs=4, by_length=by_length, seed=1)
        assert epochs[0] != epochs[1]
        assert epochs[0] != other.of_epoch(0)
        # The best there is: batches as full as the longest row lets them be for certain.
        assert batches.count <= sum(lengths) / (200 - 60) + 1


def test_each_row_meets_others_in_each_epoch_even_among_those_of_like_length() -> None:
    """Where rows always came with the same neighbours, the gradients of an epoch would not be those of a shuffle."""
    lengths = lengths_of(1000)
    batches = TokenBatches(lengths, 200, epochs=2, by_length=True, seed=0)
    first, second = ({row: set(batch) for batch in batches.of_epoch(epoch) for row in batch} for epoch in (0, 1))
    shared = sum(len(first[row] & second[row]) - 1 for row in range(1000)) / sum(
        len(first[row]) - 1 for row in range(1000)
    )
    assert shared < 0.3  # of 1,000 rows a pool has half, so that even at random some meet again


@pytest.mark.training
def test_batches_of_tokens_train_and_resume_to_the_same_bytes(
    make_recipe: MakeRecipe, tmp_path: Path, run_cut: RunCut
) -> None:
    recipe = make_recipe("method.dropout=0.2", "training.batch_tokens=200", "training.batching=group_by_length")
    whole = run(recipe, tmp_path / "whole", options=QUIET)
    run_cut(recipe, tmp_path / "cut", whole.history[-1].step - 1)
    assert resume(tmp_path / "cut", options=QUIET).metrics == whole.metrics
    assert (tmp_path / "cut" / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()


@pytest.mark.training
def test_batches_of_tokens_add_up_to_one_batch(make_recipe: MakeRecipe, still_bert: Path, tmp_path: Path) -> None:
    """48 rows in one step: as one batch, and in batches of different numbers of rows."""
    common = ("training.optimizer=sgd", "training.learning_rate=0.5", "training.max_steps=1", "training.warmup_steps=0")
    batches = {
        "one": ("training.batch_size=48",),
        "many": ("training.batch_tokens=64", "training.accumulation_steps=48"),
    }
    for name, settings in batches.items():
        run(make_recipe(*common, *settings, model=still_bert), tmp_path / name, options=QUIET)
    one, many = (load_file(tmp_path / name / ADAPTER) for name in batches)
    for name, wanted in one.items():
        # fp32 sums in another order: a few ulps of the largest weight
        assert torch.allclose(many[name], wanted, atol=2e-6), name
