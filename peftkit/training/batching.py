"""In which order rows are seen, which share a batch, and what is drawn for them anew in each epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, Sampler

from peftkit.recipe import Recipe
from peftkit.tasks import DRAW, Collator, Task
from peftkit.tasks.columns import cell_lengths

if TYPE_CHECKING:
    import datasets

_POOL_BATCHES = 50
"""Batches cut from one sorted pool: enough that padding nearly vanishes, few enough that batches stay mixed."""


class LengthGroupedSampler(Sampler[int]):
    """Rows in an order in which consecutive `batch_size` rows have like lengths; every row once per epoch.

    Rows are shuffled, pooled, sorted by length within each pool and cut into batches, whose order is shuffled again.
    The first batch of the first epoch holds the longest row, so that running out of memory shows on step one. The order
    depends on seed and epoch alone, so that a resumed run sees the rows that it would have seen.

    Args:
        lengths: tokens of each row.
        batch_size: rows of one micro-batch.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; called by the engine."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Row indices in the order of this epoch."""
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        pool_size = _POOL_BATCHES * self.batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), pool_size):
            pool = sorted(order[start : start + pool_size], key=self.lengths.__getitem__, reverse=True)
            batches += [pool[begin : begin + self.batch_size] for begin in range(0, len(pool), self.batch_size)]
        # An incomplete batch has to stay last: the engine cuts the flat order every `batch_size` rows.
        rest = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        batches = [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
        if self.epoch == 0 and batches:
            longest = max(range(len(batches)), key=lambda index: self.lengths[batches[index][0]])
            batches.insert(0, batches.pop(longest))
        return (row for batch in [*batches, *rest] for row in batch)


def token_lengths(features: datasets.Dataset, task: Task) -> list[int]:
    """Tokens of each feature, of its longest sequence where it has several."""
    lengths: list[int] = cell_lengths(features, task.cut_columns or ("input_ids",)).tolist()
    return lengths


class TokenBatches:
    """Rows in batches of at most so many tokens, padding not counted; every row once per epoch.

    Rows are shuffled and taken one by one while there is room; with `by_length` those of a pool are sorted before, and
    the order of batches is shuffled again. The engine wants as many batches in all epochs: where one has fewer than
    another, those of most rows are halved. The first batch of the first epoch is the largest when padded, so that
    running out of memory shows on step one. All depends on lengths, seed and epoch alone.

    Args:
        lengths: tokens of each row, none above `budget`.
        epochs: how many there are.
    """

    def __init__(self, lengths: Sequence[int], budget: int, *, epochs: int, by_length: bool, seed: int) -> None:
        self.lengths = lengths
        self.budget = budget
        self.seed = seed
        mean = max(sum(lengths) / len(lengths), 1)
        self.pool_size = round(_POOL_BATCHES * max(budget / mean, 1)) if by_length else None
        self.count = max(len(self._cut(epoch)) for epoch in range(epochs))

    @classmethod
    def of(cls, recipe: Recipe, lengths: Sequence[int]) -> TokenBatches:
        """As a recipe with `batch_tokens` asks."""
        training = recipe.training
        assert training.batch_tokens is not None
        epochs = math.ceil(training.epochs)
        if training.max_steps is not None:
            least = max(sum(lengths) // training.batch_tokens, 1)
            epochs = math.ceil(training.max_steps * training.accumulation_steps / least)
        by_length = training.batching == "group_by_length"
        return cls(lengths, training.batch_tokens, epochs=epochs, by_length=by_length, seed=recipe.seed)

    def of_epoch(self, epoch: int) -> list[list[int]]:
        """The rows of each batch."""
        batches = self._cut(epoch)
        while len(batches) < self.count:
            place = max((place for place, batch in enumerate(batches) if len(batch) > 1), key=lambda i: len(batches[i]))
            batch = batches[place]
            batches[place : place + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        if epoch == 0:
            largest = max(range(len(batches)), key=lambda place: self._padded(batches[place]))
            batches.insert(0, batches.pop(largest))
        return batches

    def _padded(self, batch: Sequence[int]) -> int:
        return len(batch) * max(self.lengths[row] for row in batch)

    def _cut(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        order: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        if self.pool_size is None:
            return list(self._filled(order))
        batches: list[list[int]] = []
        for start in range(0, len(order), self.pool_size):
            pool = sorted(order[start : start + self.pool_size], key=self.lengths.__getitem__, reverse=True)
            batches += self._filled(pool)
        return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]

    def _filled(self, rows: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        tokens = 0
        for row in rows:
            if batch and tokens + self.lengths[row] > self.budget:
                yield batch
                batch, tokens = [], 0
            batch.append(row)
            tokens += self.lengths[row]
        yield batch


class Batched(Dataset[list[dict[str, Any]]]):
    """Features batch by batch: an entry holds the features of one batch.

    Args:
        features: of training rows; `FreshDraws` are told the epoch too.
    """

    def __init__(self, features: Any, batches: TokenBatches) -> None:
        self.features = features
        self.batches = batches
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the batches of this epoch."""
        self.rows = self.batches.of_epoch(epoch)
        if isinstance(self.features, FreshDraws):
            self.features.set_epoch(epoch)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self.batches.count

    def __getitem__(self, place: int) -> list[dict[str, Any]]:
        """The features of one batch."""
        return [self.features[row] for row in self.rows[place]]


def one_entry(collate: Collator) -> Callable[[list[list[dict[str, Any]]]], Mapping[str, Any]]:
    """A collator of features as one of a single entry of `Batched`."""
    return lambda entries: collate(entries[0])


class FreshDraws(Dataset[dict[str, Any]]):
    """Features with a seed for the draws of the epoch (`DRAW`), which depends on seed, epoch and place alone.

    Neither batch size nor an interruption changes what is drawn for a feature.
    """

    def __init__(self, features: datasets.Dataset, *, seed: int) -> None:
        self.features = features
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Features of an epoch."""
        return len(self.features)

    def __getitem__(self, place: int) -> dict[str, Any]:
        """One feature with its seed."""
        return {**self.features[place], DRAW: [self.seed, self.epoch, place]}
