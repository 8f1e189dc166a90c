"""SMART: predictions that change little with the input, and little from step to step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.labels import Targets
from peftkit.regularizers import AtWork, Pass, Regularizer, regularizers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@regularizers.register("smart")
class Smart(Regularizer):
    """Adds how far predictions move when the embedded input does, and how far they are from those of a slow teacher.

    Jiang et al. 2020, arXiv:1911.03437. Smoothness (section 3.1): the symmetric divergence between the predictions and
    those at the input nearby where they differ most, which `steps` of projected gradient ascent from Gaussian noise
    look for; squared distance for numbers. Proximity (section 3.2, momentum Bregman proximal point): the divergence
    from the predictions of an exponential moving average of the weights. A batch takes 3 + `steps` passes, one less
    without proximity. Passes differ in dropout, too, as in the authors' code.
    """

    paper: ClassVar[str] = "Jiang et al. 2020, arXiv:1911.03437"
    targets: ClassVar[frozenset[Targets]] = frozenset({"classes", "numbers"})
    does: ClassVar[str] = "attack the embedded input"
    moves_inputs: ClassVar[bool] = True

    smoothness: float = Field(1.0, gt=0.0)
    """Weight of the divergence from the moved input; the paper's lambda."""
    proximity: float = Field(1.0, ge=0.0)
    """Weight of the divergence from the teacher; the paper's mu. 0: without teacher."""
    epsilon: float = Field(0.01, gt=0.0)
    """Greatest move of any value of the input; the paper's 1e-5 changes the predictions of small models by less than
    float32 can tell, and the authors' code moves further, too."""
    step_size: float = Field(0.01, gt=0.0)
    """Length of a step, of its greatest value."""
    noise: float = Field(1e-5, gt=0.0)
    """Standard deviation of the start."""
    steps: int = Field(1, ge=1)
    """Steps up the divergence."""
    momentum: float = Field(0.99, ge=0.0, lt=1.0)
    """What the teacher keeps of itself in an optimizer step; the paper's beta."""

    def start(self, model: PreTrainedModel) -> AtWork:
        """See `Regularizer.start`."""
        return _Smoothing(model, self)


class _Smoothing(AtWork):
    compares = True

    def __init__(self, model: PreTrainedModel, options: Smart) -> None:
        from peftkit.regularizers.averaging import RunningMean
        from peftkit.regularizers.embedded_inputs import MovedInputs

        self.model = model
        self.options = options
        self.searching = False
        """Whether passes are those of the search, whose first starts from noise."""
        self.inputs = MovedInputs(model, self._start)
        self.teacher = RunningMean(model) if options.proximity else None

    def _start(self, embedded: Tensor) -> Tensor:
        import torch

        return self.options.noise * torch.randn_like(embedded) if self.searching else torch.zeros_like(embedded)

    def begin(self, look: Callable[[], Tensor]) -> None:
        """See `AtWork.begin`."""
        self.inputs.begin()

    def addition(self, first: Pass, again: Callable[[], Pass], items: int | Tensor) -> Tensor:
        """See `AtWork.addition`."""
        import torch

        from peftkit.regularizers.substitution import substituted

        added = self.options.smoothness * self._smoothness(first, again)
        if self.teacher is not None:
            with torch.no_grad(), substituted(self.model, self.teacher.values()):
                taught = again().logits
            added = added + self.options.proximity * _distance(first.logits, taught)
        return added / items

    def _smoothness(self, first: Pass, again: Callable[[], Pass]) -> Tensor:
        import torch

        self.inputs.begin()
        self.searching = True
        for _ in range(self.options.steps):
            distance = _distance(first.logits.detach(), again().logits)
            gradients = torch.autograd.grad(distance, self.inputs.seen, allow_unused=True, materialize_grads=True)
            self.inputs.move([self._climbed(*pair) for pair in zip(self.inputs.moves, gradients, strict=True)])
        found = _distance(first.logits, again().logits)
        self.searching = False
        self.inputs.begin()
        return found

    def _climbed(self, move: Tensor, gradient: Tensor) -> Tensor:
        import torch

        gradient = gradient.float().nan_to_num()
        greatest = gradient.abs().flatten(1).amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]
        climbed = move + self.options.step_size * gradient / greatest
        return climbed.clamp(-self.options.epsilon, self.options.epsilon).to(move.dtype)

    def after_step(self, step: int, total: int) -> None:
        """See `AtWork.after_step`."""
        if self.teacher is not None:
            self.teacher.add(1 - self.options.momentum)

    def state(self) -> Mapping[str, Tensor]:
        """See `AtWork.state`."""
        return {} if self.teacher is None else self.teacher.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `AtWork.restore`."""
        if self.teacher is not None:
            self.teacher.restore(state)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """Summed over positions, of logits (positions, classes), or of numbers (positions, 1)."""
    from peftkit.regularizers.divergence import symmetric_divergence

    if first.shape[-1] == 1:
        return (first.float() - second.float()).square().sum()
    return symmetric_divergence(first, second)
