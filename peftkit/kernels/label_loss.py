"""The loss of a language model's head, computed where labels are, a chunk at a time.

With hidden states h (tokens, width), a head f and labels y, the loss is a sum over tokens of l(f(h_t), y_t). Nobody
reads f(h) but the loss, so that its gradient dl/dh is formed chunk by chunk as well: the logits of all tokens, (tokens,
vocabulary), which are the largest tensor of a step by far, never exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

CHUNK = 2**22
"""Logits that are held at a time."""

Compute = Callable[[Tensor, Tensor], Tensor]
"""From hidden states (tokens, width) and labels (tokens,) to the sum of their losses, scalar."""


def label_loss(
    states: Tensor, labels: Tensor, head: nn.Module, loss: Compute, *, divisor: Tensor | None = None
) -> Tensor:
    """Sum of `loss` over `head(states)`, with the gradients of plain autograd.

    Args:
        states: (tokens, width), at tokens that have a label.
        labels: (tokens,).
        head: from hidden states to logits (tokens, vocabulary).
        loss: from logits and labels to a sum over tokens, scalar.
        divisor: where `loss` is the cross-entropy divided by something, what by: float32 logits then give their place
            to their gradient.
    """
    if not len(states):
        return states.sum() * 0.0
    weights = [weight for weight in head.parameters() if weight.requires_grad]
    chunk = _chunk(states, head)

    def compute(part: Tensor, wanted: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        read = part.detach().requires_grad_()
        with torch.enable_grad():
            logits = head(read)
            if divisor is None or logits.dtype != torch.float32:
                lost = loss(logits, wanted)
                return lost.detach(), torch.autograd.grad(lost, [read, *weights])
        summed = cross_entropy_(logits.detach(), wanted) / divisor
        return summed, torch.autograd.grad(logits, [read, *weights], logits.detach().div_(divisor))

    found: Tensor = _ChunkedLoss.apply(states, labels, compute, chunk, *weights)  # type: ignore[no-untyped-call] # torch's
    return found


@torch.no_grad()
def label_scores(states: Tensor, labels: Tensor, head: nn.Module, loss: Compute) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of `loss` as in `label_loss`; -log p of each label; whether it is the likeliest of all (tokens,)."""
    total, lost, right = torch.zeros((), device=states.device), [states.new_zeros(0, dtype=torch.float32)], []
    right.append(labels.new_zeros(0, dtype=torch.bool))
    for part, wanted in zip(*(torch.split(whole, _chunk(states, head)) for whole in (states, labels)), strict=True):
        if not len(part):
            continue
        logits = head(part)
        total += loss(logits, wanted)
        lost.append(cross_entropy(logits.float(), wanted, reduction="none"))
        right.append(logits.argmax(-1) == wanted)
    return total, torch.cat(lost), torch.cat(right)


def _chunk(states: Tensor, head: nn.Module) -> int:
    """Tokens that are computed at a time."""
    if not len(states):
        return 1
    with torch.no_grad():
        vocabulary: int = head(states[:1]).shape[-1]
    return max(1, CHUNK // vocabulary)


@torch.no_grad()
def cross_entropy_(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of -log softmax(logits)[label] over tokens; its gradient is written over `logits` (tokens, classes)."""
    labels = labels[:, None]
    top = logits.amax(-1, keepdim=True)
    chosen = logits.gather(1, labels)
    total = logits.sub_(top).exp_().sum(-1, keepdim=True)
    logits.div_(total).scatter_add_(1, labels, torch.full_like(chosen, -1.0))
    return (total.log() + top - chosen).sum()


_Compute = Callable[[Tensor, Tensor], tuple[Tensor, Sequence[Tensor]]]
"""From states and labels of a chunk to its loss, and the gradients of states and of weights."""


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, labels: Tensor, compute: _Compute, chunk: int, *weights: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        gradients: list[Tensor] = []
        summed = [torch.zeros_like(weight) for weight in weights]
        for part, wanted in zip(torch.split(states, chunk), torch.split(labels, chunk), strict=True):
            lost, (gradient, *of_weights) = compute(part, wanted)
            gradients.append(gradient)
            for held, more in zip(summed, of_weights, strict=True):
                held += more
            total += lost
        ctx.save_for_backward(torch.cat(gradients), *summed)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        states, *weights = (gradient * outer[0].to(gradient.dtype) for gradient in ctx.saved_tensors)
        return states, None, None, None, *weights


class HeadInput:
    """Takes what a language model's head is given, and lets the head see the last token of each row only."""

    def __init__(self, head: nn.Module) -> None:
        self.head = head
        self.states: Tensor | None = None
        """(rows, length, width) of the last pass."""
        self.hook = head.register_forward_pre_hook(self._take)

    def _take(self, head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if args[0].ndim != 3:
            return None
        self.states = args[0]
        return (args[0][:, -1:],)

    def explains(self, logits: Tensor) -> bool:
        """Whether the model's logits (rows, 1, vocabulary) are the head's, and nothing is done to them afterwards.

        From here on the head sees everything again.
        """
        if self.states is None or logits.shape[:2] != (len(self.states), 1):
            return False
        self.remove()
        with torch.no_grad():
            # Of the shape that the model gave: products of another shape may be summed in another order.
            return torch.equal(self.head(self.states[:, -1:]), logits)

    def remove(self) -> None:
        """Let the head see everything again."""
        self.hook.remove()
