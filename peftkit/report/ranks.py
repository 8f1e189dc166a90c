"""The rank of every matrix over time, for methods that give ranks out while training."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

from peftkit.results import RANK_PREFIX, RunResult

STEPS_SHOWN = 12
"""More columns than that do not fit beside the names of the matrices."""


@dataclass(frozen=True)
class MatrixRanks:
    """Ranks of one matrix, one for each step that is shown."""

    name: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class RankView:
    """Ranks over time.

    Args:
        steps: optimizer steps that are shown: the first, the last, and others between them where ranks changed.
        matrices: in the order of the model.
        highest: of all ranks.
        shared: beginning that all names have in common, which the rows leave out.
    """

    steps: tuple[int, ...]
    matrices: tuple[MatrixRanks, ...]
    highest: int
    shared: str

    @property
    def totals(self) -> tuple[int, ...]:
        """Sum over all matrices, by step: the budget."""
        return tuple(sum(ranks) for ranks in zip(*(matrix.ranks for matrix in self.matrices), strict=True))


def rank_view(result: RunResult) -> RankView | None:
    """What the page shows of ranks; None if the run has logged none."""
    present: dict[str, int] = {}
    snapshots: dict[int, dict[str, int]] = {}
    for point in result.history:
        logged = {key: int(value) for key, value in point.values.items() if key.startswith(RANK_PREFIX)}
        if logged:
            present = present | logged
            snapshots[point.step] = present
    if not snapshots:
        return None
    steps = _spread(list(snapshots))
    names = [key.removeprefix(RANK_PREFIX) for key in present]
    shared = _shared_start(names)
    matrices = tuple(
        MatrixRanks(name.removeprefix(shared), tuple(snapshots[step].get(RANK_PREFIX + name, 0) for step in steps))
        for name in names
    )
    highest = max(rank for matrix in matrices for rank in matrix.ranks)
    return RankView(tuple(steps), matrices, max(1, highest), shared.rstrip("."))


def _shared_start(names: list[str]) -> str:
    """The parts of dotted names that all of them begin with, with a dot at the end; never a whole name."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{parts[0]}." for parts in takewhile(lambda parts: len({*parts}) == 1, levels))


def _spread(steps: list[int]) -> list[int]:
    """At most `STEPS_SHOWN` of `steps`, the first and the last among them."""
    if len(steps) <= STEPS_SHOWN:
        return steps
    places = [round(place * (len(steps) - 1) / (STEPS_SHOWN - 1)) for place in range(STEPS_SHOWN)]
    return [steps[place] for place in places]
