"""Projected gradient descent: training on the worst input that several steps find."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.regularizers import AtWork, Regularizer, regularizers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@regularizers.register("pgd")
class Pgd(Regularizer):
    """Trains on embedded inputs that were moved, in several steps, to where the loss is high near the true ones.

    Madry et al. 2018, arXiv:1706.06083, equation 2.1 and section 2, with a ball of the 2-norm around each row and a
    random start in it. As there, only the loss at the place that was found trains the weights; the passes that look for
    it give no gradients. A step takes 1 + `steps` times the time. The embedded input moves, never the embedding itself.
    """

    paper: ClassVar[str] = "Madry et al. 2018, arXiv:1706.06083"
    does: ClassVar[str] = "attack the embedded input"
    moves_inputs: ClassVar[bool] = True

    epsilon: float = Field(0.05, gt=0.0)
    """Greatest length of the move of each row, over all of its tokens; half of fgm's, as no loss of the true input
    counts here."""
    step_size: float = Field(0.02, gt=0.0)
    """Length of one step."""
    steps: int = Field(3, ge=1)
    """Steps up the loss."""

    def start(self, model: PreTrainedModel) -> AtWork:
        """See `Regularizer.start`."""
        return _Attack(model, self)


class _Attack(AtWork):
    def __init__(self, model: PreTrainedModel, options: Pgd) -> None:
        from peftkit.regularizers.embedded_inputs import MovedInputs, noise_within

        self.options = options
        self.inputs = MovedInputs(model, lambda embedded: noise_within(embedded, options.epsilon))

    def begin(self, look: Callable[[], Tensor]) -> None:
        """See `AtWork.begin`."""
        import torch

        from peftkit.regularizers.embedded_inputs import climbed

        self.inputs.begin()
        for _ in range(self.options.steps):
            gradients = torch.autograd.grad(look(), self.inputs.seen, allow_unused=True, materialize_grads=True)
            self.inputs.move(climbed(self.inputs.moves, gradients, self.options))
