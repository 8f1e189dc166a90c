"""Linear-chain conditional random field (Lafferty et al. 2001; for tagging Lample et al. 2016, arXiv:1603.01360).

The score of a path y over emissions x is start[y_1] + sum_t x[t, y_t] + sum_t transitions[y_t-1, y_t] + end[y_n].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Transitions(NamedTuple):
    """Scores between labels.

    Args:
        between: (labels, labels) float32, from row to column.
        start: (labels,) float32, of the first label.
        end: (labels,) float32, of the last label.
    """

    between: Tensor
    start: Tensor
    end: Tensor


class CRF(nn.Module):
    """The trainable transitions; calling it gives them, so that a wrapper around it decides whose they are."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.between = nn.Parameter(torch.empty(labels, labels))
        self.start = nn.Parameter(torch.empty(labels))
        self.end = nn.Parameter(torch.empty(labels))
        self.reset()

    def reset(self) -> None:
        """All transitions equally likely."""
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(self) -> Transitions:
        """The transitions as they are."""
        return Transitions(self.between, self.start, self.end)


def path_score(emissions: Tensor, labels: Tensor, mask: Tensor, scores: Transitions) -> Tensor:
    """Score of the given paths, (rows,).

    Args:
        emissions: (rows, steps, labels) float32.
        labels: (rows, steps) int64, anything where the mask is False.
        mask: (rows, steps) bool, True on a prefix of each row of at least one step.
    """
    labels = labels.where(mask, 0)
    own = emissions.gather(-1, labels[..., None])[..., 0]
    moves = scores.between[labels[:, :-1], labels[:, 1:]]
    last = labels.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0]
    return (own * mask).sum(1) + (moves * mask[:, 1:]).sum(1) + scores.start[labels[:, 0]] + scores.end[last]


def log_partition(emissions: Tensor, mask: Tensor, scores: Transitions) -> Tensor:
    """Log of the sum over all paths of exp(score), (rows,); see `path_score`."""
    alpha = scores.start + emissions[:, 0]
    for step in range(1, emissions.shape[1]):
        moved = (alpha[:, :, None] + scores.between).logsumexp(1) + emissions[:, step]
        alpha = torch.where(mask[:, step, None], moved, alpha)
    return (alpha + scores.end).logsumexp(-1)


def viterbi(emissions: Tensor, mask: Tensor, scores: Transitions) -> Tensor:
    """The path of highest score, (rows, steps) int64, 0 where the mask is False; see `path_score`."""
    rows, steps, _ = emissions.shape
    best = scores.start + emissions[:, 0]
    came_from = []
    for step in range(1, steps):
        score, source = (best[:, :, None] + scores.between).max(1)
        best = torch.where(mask[:, step, None], score + emissions[:, step], best)
        came_from.append(source)
    label = (best + scores.end).argmax(-1)
    path = torch.zeros(rows, steps, dtype=torch.long, device=emissions.device)
    for step in range(steps - 1, -1, -1):
        path[:, step] = label.where(mask[:, step], 0)
        if step:
            label = torch.where(mask[:, step], came_from[step - 1].gather(1, label[:, None])[:, 0], label)
    return path


def marginals(emissions: Tensor, mask: Tensor, scores: Transitions) -> Tensor:
    """Probability of every label at every step, (rows, steps, labels), by forward and backward sums."""
    forward = [scores.start + emissions[:, 0]]
    for step in range(1, emissions.shape[1]):
        moved = (forward[-1][:, :, None] + scores.between).logsumexp(1) + emissions[:, step]
        forward.append(torch.where(mask[:, step, None], moved, forward[-1]))
    backward = [scores.end.expand_as(forward[0])]
    for step in range(emissions.shape[1] - 1, 0, -1):
        ahead = (scores.between + (emissions[:, step] + backward[-1])[:, None, :]).logsumexp(-1)
        backward.append(torch.where(mask[:, step, None], ahead, scores.end.expand_as(ahead)))
    return (torch.stack(forward, 1) + torch.stack(backward[::-1], 1)).softmax(-1)
