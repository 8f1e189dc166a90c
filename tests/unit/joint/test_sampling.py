"""Shares of tasks, by the formulas of Raffel et al. 2020, section 3.5.2, and the micro-batches that keep to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

import datasets
import pytest

from peftkit.errors import RecipeError
from peftkit.joint.batches import MicroBatches, TaskRows
from peftkit.multi_task import Sampling

ROWS = {"large": 1000, "middle": 100, "small": 10}
ALIKE = dict.fromkeys(ROWS, 1.0)


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        (Sampling(), [1000 / 1110, 100 / 1110, 10 / 1110]),
        (Sampling(name="equal"), [1 / 3, 1 / 3, 1 / 3]),
        # square roots over their sum
        (Sampling(name="temperature", temperature=2), [31.6228 / 44.7851, 10 / 44.7851, 3.1623 / 44.7851]),
        (Sampling(name="temperature", temperature=1), [1000 / 1110, 100 / 1110, 10 / 1110]),
        (Sampling(limit=100), [100 / 210, 100 / 210, 10 / 210]),
        (Sampling(name="temperature", temperature=2, limit=100), [10 / 23.1623, 10 / 23.1623, 3.1623 / 23.1623]),
    ],
)
def test_rates_follow_the_formula(sampling: Sampling, wanted: list[float]) -> None:
    assert list(sampling.rates(ROWS, ALIKE).values()) == pytest.approx(wanted, abs=1e-5)


def test_weights_multiply_rates_before_they_add_up_to_one() -> None:
    rates = Sampling(name="equal").rates(ROWS, {"large": 1, "middle": 2, "small": 5})
    assert rates == pytest.approx({"large": 1 / 8, "middle": 2 / 8, "small": 5 / 8})


def micro_batches(
    rows: Mapping[str, int], rates: Mapping[str, float], *, batch_size: int = 4, by_length: bool = False
) -> MicroBatches:
    parts = {}
    for name, count in rows.items():
        features = datasets.Dataset.from_dict(
            {"input_ids": [[7] * (1 + row % 5) for row in range(count)], "row": list(range(count))}
        )
        parts[name] = TaskRows(features, batch_size, seed=3, by_length=by_length)
    return MicroBatches(parts, rates, draws=(), seed=3)


def epochs_of(batches: MicroBatches, count: int) -> list[tuple[int, list[int]]]:
    """Task and rows of each micro-batch of so many epochs."""
    found = []
    for epoch in range(count):
        batches.set_epoch(epoch)
        found += [
            (task, [part["row"] for part in features])
            for task, features in map(batches.__getitem__, range(len(batches)))
        ]
    return found


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(name="equal"), Sampling(name="temperature", temperature=3)])
def test_each_epoch_keeps_the_shares(sampling: Sampling) -> None:
    rows = {"large": 203, "middle": 61, "small": 20}
    rates = sampling.rates(rows, dict.fromkeys(rows, 1.0))
    batches = micro_batches(rows, rates)
    assert len(batches) == 51 + 16 + 5  # one pass over all
    for epoch in range(3):
        batches.set_epoch(epoch)
        counts = Counter(batches[place][0] for place in range(len(batches)))
        for task, rate in enumerate(rates.values()):
            assert abs(counts[task] - rate * 72) < 1


@pytest.mark.parametrize("by_length", [False, True])
def test_every_row_comes_once_in_each_pass_over_a_task(by_length: bool) -> None:
    rows = {"large": 30, "small": 9}
    seen: dict[int, list[int]] = {0: [], 1: []}
    batches = micro_batches(rows, {"large": 0.5, "small": 0.5}, by_length=by_length)
    found = epochs_of(batches, 6)
    for task, chosen in found:
        assert 0 < len(chosen) <= 4
        seen[task] += chosen
    # an epoch has 8 + 3 micro-batches, of which 6 and 5 go to the tasks: 36 and 30 in all
    assert [task for task, _ in found].count(0) == 36
    for task, count in enumerate(rows.values()):
        passes = [seen[task][start : start + count] for start in range(0, len(seen[task]), count)]
        assert len(passes) > 3
        for one in passes[:-1]:
            assert sorted(one) == list(range(count))
        assert passes[0] != passes[1]


def test_an_epoch_is_the_same_without_those_before_it() -> None:
    rows, rates = {"large": 30, "small": 9}, {"large": 0.6, "small": 0.4}
    whole = epochs_of(micro_batches(rows, rates), 4)
    last = micro_batches(rows, rates)
    last.set_epoch(3)
    again = [(task, [part["row"] for part in features]) for task, features in map(last.__getitem__, range(len(last)))]
    assert whole[-len(last) :] == again
    assert whole[: len(last)] != again


def test_tasks_are_mixed_within_an_epoch() -> None:
    batches = micro_batches({"one": 80, "other": 80}, {"one": 0.5, "other": 0.5})
    order = [task for task, _ in batches.plan]
    assert order != sorted(order)
    assert 8 < sum(one != other for one, other in pairwise(order)) < 32


def test_a_task_without_any_micro_batch_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"tasks.small: of the 51 micro-batches of an epoch none is left .* 0.005"):
        micro_batches({"large": 200, "small": 1}, {"large": 0.995, "small": 0.005})
