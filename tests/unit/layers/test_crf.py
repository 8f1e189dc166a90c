"""The CRF against sums and maxima over all paths."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from peftkit.layers.crf import CRF, Transitions, log_partition, marginals, path_score, viterbi

LENGTHS = (4, 1, 3)
LABELS = 3


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Transitions]:
    torch.manual_seed(0)
    emissions = torch.randn(len(LENGTHS), max(LENGTHS), LABELS)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return emissions, mask, Transitions(torch.randn(LABELS, LABELS), torch.randn(LABELS), torch.randn(LABELS))


def all_paths(emissions: Tensor, scores: Transitions, length: int) -> dict[tuple[int, ...], float]:
    """Every path of one row and its score, summed by hand."""
    found = {}
    for path in product(range(LABELS), repeat=length):
        score = scores.start[path[0]] + scores.end[path[-1]]
        score = score + sum(emissions[step, label] for step, label in enumerate(path))
        found[path] = float(score + sum(scores.between[one, two] for one, two in pairwise(path)))
    return found


def test_partition_and_best_path_are_those_of_all_paths(problem: tuple[Tensor, Tensor, Transitions]) -> None:
    emissions, mask, scores = problem
    partition, best = log_partition(emissions, mask, scores), viterbi(emissions, mask, scores)
    for row, length in enumerate(LENGTHS):
        paths = all_paths(emissions[row], scores, length)
        assert partition[row].item() == pytest.approx(torch.tensor(list(paths.values())).logsumexp(0).item(), abs=1e-5)
        assert tuple(best[row, :length].tolist()) == max(paths, key=paths.__getitem__)
        assert not best[row, length:].any()


def test_score_of_a_path(problem: tuple[Tensor, Tensor, Transitions]) -> None:
    emissions, mask, scores = problem
    labels = torch.tensor([[2, 0, 1, 1], [1, -100, -100, -100], [0, 0, 2, -100]])
    found = path_score(emissions, labels, mask, scores)
    for row, length in enumerate(LENGTHS):
        wanted = all_paths(emissions[row], scores, length)[tuple(labels[row, :length].tolist())]
        assert found[row].item() == pytest.approx(wanted, abs=1e-5)


def test_marginals_are_sums_over_paths(problem: tuple[Tensor, Tensor, Transitions]) -> None:
    emissions, mask, scores = problem
    found = marginals(emissions, mask, scores)
    for row, length in enumerate(LENGTHS):
        paths = all_paths(emissions[row], scores, length)
        weights = torch.tensor(list(paths.values())).softmax(0)
        for step, label in product(range(length), range(LABELS)):
            chosen = [path[step] == label for path in paths]
            assert found[row, step, label].item() == pytest.approx(weights[chosen].sum().item(), abs=1e-5)


def test_gradients_reach_every_weight(problem: tuple[Tensor, Tensor, Transitions]) -> None:
    emissions, mask, _ = problem
    layer = CRF(LABELS)
    labels = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    scores = layer()
    (log_partition(emissions, mask, scores) - path_score(emissions, labels, mask, scores)).sum().backward()
    for weight in layer.parameters():
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0
