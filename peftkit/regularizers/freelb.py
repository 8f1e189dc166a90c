"""FreeLB: every step of the search for a worse input trains, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.regularizers import AtWork, Regularizer, regularizers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@regularizers.register("freelb")
class FreeLb(Regularizer):
    """Mean of the losses at several places near the embedded input, each further up the loss than the one before.

    Zhu et al. 2020, arXiv:1909.11764, algorithm 1: a random start, then `steps` passes whose gradients are averaged;
    all passes over a batch have the same dropout (section 3.3). A step takes `steps` times the time. The embedded input
    moves, never the embedding itself.
    """

    paper: ClassVar[str] = "Zhu et al. 2020, arXiv:1909.11764"
    does: ClassVar[str] = "attack the embedded input"
    moves_inputs: ClassVar[bool] = True

    epsilon: float = Field(0.1, gt=0.0)
    """Greatest length of the move of each row, over all of its tokens."""
    step_size: float = Field(0.04, gt=0.0)
    """Length of one step."""
    steps: int = Field(3, ge=2)
    """Passes over each batch."""

    def start(self, model: PreTrainedModel) -> AtWork:
        """See `Regularizer.start`."""
        return _Attack(model, self)


class _Attack(AtWork):
    def __init__(self, model: PreTrainedModel, options: FreeLb) -> None:
        import torch

        from peftkit.regularizers.embedded_inputs import MovedInputs, noise_within

        self.options = options
        self.loss_share = 1 / options.steps
        self.generator = torch.Generator(model.device)
        """Draws the start; the global state belongs to dropout, which is the same in every pass over a batch."""
        self.inputs = MovedInputs(
            model, lambda embedded: noise_within(embedded, options.epsilon, generator=self.generator)
        )
        self.random_state: list[Tensor] = []

    def begin(self, look: Callable[[], Tensor]) -> None:
        """See `AtWork.begin`."""
        import torch

        from peftkit.regularizers.random_state import random_state

        self.inputs.begin()
        self.generator.manual_seed(int(torch.randint(2**62, ())))
        self.random_state = random_state()

    def after_backward(self, again: Callable[[], object]) -> None:
        """See `AtWork.after_backward`."""
        from peftkit.regularizers.embedded_inputs import climbed
        from peftkit.regularizers.random_state import set_random_state

        for _ in range(1, self.options.steps):
            self.inputs.move(climbed(self.inputs.moves, self.inputs.gradients(), self.options))
            set_random_state(self.random_state)
            again()
