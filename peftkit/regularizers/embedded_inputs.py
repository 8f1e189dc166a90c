"""Changing the embedded input while a model trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import PreTrainedModel


class Ascent(Protocol):
    """Options of a search for a worse input."""

    @property
    def epsilon(self) -> float:
        """Greatest length of a row's move."""

    @property
    def step_size(self) -> float:
        """Length of one step."""


def change_embedded_inputs(model: PreTrainedModel, change: Callable[[Tensor], Tensor]) -> None:
    """Pass every embedded input (rows, tokens, width) through `change`, while the model is in training mode."""

    def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return change(output) if module.training else output

    for reader in _readers(model):
        reader.register_forward_hook(hook)


def _readers(model: PreTrainedModel) -> list[Any]:
    """The modules that embed tokens: T5's encoder and decoder have one each, which share their table with a third."""
    first = model.get_input_embeddings()
    table = _table(first)
    if table is None:
        return [first]
    return [module for module in model.modules() if type(module) is type(first) and _table(module) is table]


def _table(module: Any) -> Any:
    """The embedding's weight, also inside what an adapter has put around it."""
    from torch import nn

    return next((part.weight for part in module.modules() if isinstance(part, nn.Embedding)), None)


class MovedInputs:
    """The embedded inputs of the passes over a micro-batch: they can be moved, and their gradients are kept.

    Args:
        start: the move of an embedded input in the first pass; later passes take theirs from `move`.
    """

    def __init__(self, model: PreTrainedModel, start: Callable[[Tensor], Tensor]) -> None:
        self.start = start
        self.moves: list[Tensor] = []
        """Of each embedded input of a pass, in the order in which they are read (encoder, decoder)."""
        self.seen: list[Tensor] = []
        """The embedded inputs of the pass that is under way, moved."""
        change_embedded_inputs(model, self._pass)

    def begin(self) -> None:
        """Forget the last micro-batch."""
        self.move([])

    def move(self, moves: Sequence[Tensor]) -> None:
        """Set the moves of the next pass."""
        self.moves = list(moves)
        self.seen.clear()

    def gradients(self) -> list[Tensor]:
        """What the backward pass has given; zeros where nothing depends on an input."""
        import torch

        return [torch.zeros_like(seen) if seen.grad is None else seen.grad for seen in self.seen]

    def _pass(self, embedded: Tensor) -> Tensor:
        place = len(self.seen)
        if place == len(self.moves):
            self.moves.append(self.start(embedded))
        embedded = embedded + self.moves[place]
        if not embedded.requires_grad:  # of a frozen embedding
            embedded = embedded.detach().requires_grad_()
        embedded.retain_grad()
        self.seen.append(embedded)
        return embedded


def along(gradient: Tensor, length: float) -> Tensor:
    """`gradient` of (rows, tokens, width) with each row stretched to `length`; rows of zeros stay."""
    gradient = gradient.float().nan_to_num()
    return length * gradient / _lengths(gradient)


def climbed(moves: Sequence[Tensor], gradients: Sequence[Tensor], options: Ascent) -> list[Tensor]:
    """Moves after one step of projected gradient ascent."""
    stepped = [move + along(gradient, options.step_size) for move, gradient in zip(moves, gradients, strict=True)]
    return [within(move, options.epsilon).to(gradient.dtype) for move, gradient in zip(stepped, gradients, strict=True)]


def within(move: Tensor, epsilon: float) -> Tensor:
    """`move` with each row that is longer than `epsilon` cut to it."""
    return move * (epsilon / _lengths(move)).clamp(max=1.0)


def noise_within(embedded: Tensor, epsilon: float, *, generator: Generator | None = None) -> Tensor:
    """Uniform noise, at most epsilon / sqrt(tokens * width) in each value, so that no row is longer than `epsilon`."""
    import torch

    noise: Tensor = torch.empty_like(embedded, requires_grad=False)
    size = epsilon / (embedded.shape[-2] * embedded.shape[-1]) ** 0.5
    return noise.uniform_(-size, size, generator=generator)


def _lengths(rows: Tensor) -> Tensor:
    """(rows, tokens, width) -> (rows, 1, 1)"""
    import torch

    lengths: Tensor = rows.float().flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    return lengths[:, None, None]
