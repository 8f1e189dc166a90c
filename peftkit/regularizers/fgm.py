"""Adversarial training on the embedded input."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.regularizers import AtWork, Regularizer, regularizers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@regularizers.register("fgm")
class Fgm(Regularizer):
    """A second pass over every batch, its embedded input moved by epsilon to where the loss rises fastest.

    Miyato, Dai & Goodfellow 2017, arXiv:1605.07725, section 3. The embedded input moves, never the embedding itself, so
    that it works with frozen ones. A step takes twice the time.
    """

    paper: ClassVar[str] = "Miyato, Dai & Goodfellow 2017, arXiv:1605.07725"

    epsilon: float = Field(1.0, gt=0.0)
    """Length of the move of each row, over all of its tokens."""

    def start(self, model: PreTrainedModel) -> AtWork:
        """See `Regularizer.start`."""
        return _Attack(model, self.epsilon)


class _Attack(AtWork):
    def __init__(self, model: PreTrainedModel, epsilon: float) -> None:
        from peftkit.regularizers.embedded_inputs import change_embedded_inputs

        self.epsilon = epsilon
        self.seen: list[Tensor] = []
        self.moves: list[Tensor] | None = None
        """Of the pass that is under way, first embedded input first; None: a pass that is only looked at."""
        change_embedded_inputs(model, self._pass)

    def _pass(self, embedded: Tensor) -> Tensor:
        if self.moves is not None:
            return embedded + self.moves.pop(0)
        if not embedded.requires_grad:  # of a frozen embedding
            embedded = embedded.detach().requires_grad_()
        embedded.retain_grad()
        self.seen.append(embedded)
        return embedded

    def after_backward(self, again: Callable[[], object]) -> None:
        """See `AtWork.after_backward`."""
        self.moves = [self._move(embedded) for embedded in self.seen]
        self.seen.clear()
        try:
            again()
        finally:
            self.moves = None

    def _move(self, embedded: Tensor) -> Tensor:
        import torch

        if embedded.grad is None:
            return torch.zeros_like(embedded)
        gradient = embedded.grad.float().nan_to_num()
        length = gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        move: Tensor = (self.epsilon * gradient / length[:, None, None]).to(embedded.dtype)
        return move
