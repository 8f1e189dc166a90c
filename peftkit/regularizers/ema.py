"""Exponential moving average of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.regularizers import AtWork, Regularizer, regularizers
from peftkit.regularizers.averaging import Averaging

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@regularizers.register("ema")
class Ema(Regularizer):
    """Evaluates and saves the exponential moving average of the weights that train, instead of the last weights.

    Kingma & Ba 2015, arXiv:1412.6980, section 7.2, with its correction for the first steps. The weights go on training
    from where they are, and the average never touches them. Of an adapter the matrices are averaged, not their product.
    """

    paper: ClassVar[str] = "Kingma & Ba 2015, arXiv:1412.6980"
    does: ClassVar[str] = "average the weights"
    averages_weights: ClassVar[bool] = True

    decay: float = Field(0.98, gt=0.0, lt=1.0)
    """What an optimizer step's weights still count after one more step: 0.98 looks back over about 50 steps."""

    def start(self, model: PreTrainedModel) -> AtWork:
        """See `Regularizer.start`."""
        return _Average(model, self.decay)


class _Average(Averaging):
    def __init__(self, model: PreTrainedModel, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    def after_step(self, step: int, total: int) -> None:
        """See `AtWork.after_step`."""
        self.mean.add((1 - self.decay) / (1 - self.decay ** (self.mean.count + 1)))
