"""In which order rows are seen, which share a batch, and what is drawn for them anew in each epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset, Sampler

from peftkit.tasks import DRAW

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
