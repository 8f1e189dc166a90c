"""Micro-batches of several tasks: each holds rows of one task, and each task comes as often as its share says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from peftkit.data.mixture import shares_of
from peftkit.errors import RecipeError
from peftkit.tasks import Collator
from peftkit.tasks.columns import cell_lengths
from peftkit.training.batching import FreshDraws, LengthGroupedSampler

TASK = "joint_task"
"""Entry of a batch with the position of its task."""


class TaskRows:
    """The training rows of one task, pass after pass: every row once in each, in an order that depends on seed and
    pass alone.

    Args:
        features: of the training rows.
        batch_size: rows of a micro-batch; the last of a pass may have fewer.
        by_length: whether rows of like length share a micro-batch.
    """

    def __init__(self, features: Any, batch_size: int, *, seed: int, by_length: bool) -> None:
        self.features = features
        self.batch_size = batch_size
        self.seed = seed
        lengths = cell_lengths(features, ("input_ids",)).tolist() if by_length else None
        self.grouped = LengthGroupedSampler(lengths, batch_size, seed=seed) if lengths is not None else None
        self.ordered: tuple[int, list[int]] | None = None

    @property
    def batches_per_pass(self) -> int:
        """Micro-batches that hold every row once."""
        return math.ceil(len(self.features) / self.batch_size)

    def rows(self, place: int) -> tuple[int, list[int]]:
        """Pass, and rows, of the micro-batch at a place, counted over all passes."""
        number, inside = divmod(place, self.batches_per_pass)
        if self.ordered is None or self.ordered[0] != number:
            self.ordered = number, self._order(number)
        order = self.ordered[1]
        return number, order[inside * self.batch_size : (inside + 1) * self.batch_size]

    def _order(self, number: int) -> list[int]:
        if self.grouped is not None:
            self.grouped.set_epoch(number)
            return list(self.grouped)
        # As the engine shuffles the rows of a single task, so that one task alone gives the run that it gives alone.
        order: list[int] = torch.randperm(
            len(self.features), generator=torch.Generator().manual_seed(self.seed + number)
        ).tolist()
        return order


class MicroBatches(Dataset[tuple[int, list[dict[str, Any]]]]):
    """The micro-batches of an epoch, each with the position of its task.

    Every epoch has as many as one pass over the rows of all tasks takes. The shares of the tasks are kept exactly, up
    to one micro-batch, and a task goes on in the next epoch where it stopped in the last. All depends on seed and epoch
    alone, so that a resumed run sees what it would have seen.

    Args:
        tasks: training rows by task.
        rates: share of each task.

    Raises:
        RecipeError: an epoch has no micro-batch for one of the tasks.
    """

    def __init__(self, tasks: Mapping[str, TaskRows], rates: Mapping[str, float], *, draws: Sequence[str], seed: int):
        self.tasks = list(tasks.values())
        self.draws = [name in draws for name in tasks]
        self.seed = seed
        self.epoch = 0
        total = sum(rows.batches_per_pass for rows in self.tasks)
        self.counts = shares_of(total, [rates[name] for name in tasks])
        for name, count in zip(tasks, self.counts, strict=True):
            if count == 0:
                raise RecipeError(
                    f"tasks.{name}: of the {total} micro-batches of an epoch none is left for this task, whose share "
                    f"is {rates[name]:.2g}; raise its weight, lower training.batch_size or choose  sampling: equal"
                )
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the tasks in this epoch, and what is drawn for their rows."""
        self.epoch = epoch
        tasks = [task for task, count in enumerate(self.counts) for _ in range(count)]
        order = torch.randperm(len(tasks), generator=torch.Generator().manual_seed(self.seed + epoch)).tolist()
        seen = Counter({task: epoch * count for task, count in enumerate(self.counts)})
        self.plan: list[tuple[int, int]] = []
        for task in (tasks[place] for place in order):
            self.plan.append((task, seen[task]))
            seen[task] += 1

    def __len__(self) -> int:
        """Micro-batches of an epoch."""
        return len(self.plan)

    def __getitem__(self, place: int) -> tuple[int, list[dict[str, Any]]]:
        """Position of a task, and features of its rows."""
        task, inside = self.plan[place]
        rows = self.tasks[task]
        number, chosen = rows.rows(inside)
        features = rows.features
        if self.draws[task]:
            features = FreshDraws(features, seed=self.seed)
            features.set_epoch(number)
        return task, [features[row] for row in chosen]


def collator(collators: Sequence[Collator]) -> Callable[[list[tuple[int, list[dict[str, Any]]]]], dict[str, Any]]:
    """Function from one entry of `MicroBatches` to a batch as its task makes it, with `TASK`."""

    def collate(entries: list[tuple[int, list[dict[str, Any]]]]) -> dict[str, Any]:
        ((task, features),) = entries
        return {**collators[task](features), TASK: torch.tensor(task)}

    return collate
