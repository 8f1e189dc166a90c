"""Stochastic weight averaging."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.regularizers import AtWork, Regularizer, regularizers
from peftkit.regularizers.averaging import Averaging

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@regularizers.register("swa")
class Swa(Regularizer):
    """Evaluates and saves the equal average of the weights of the last part of the run; before it, the weights.

    Izmailov et al. 2018, arXiv:1803.05407, algorithm 1. The learning rate is that of the recipe: the paper keeps it
    high (`training.scheduler: constant_with_warmup`). Of an adapter the matrices are averaged, not their product.
    """

    paper: ClassVar[str] = "Izmailov et al. 2018, arXiv:1803.05407"
    does: ClassVar[str] = "average the weights"
    averages_weights: ClassVar[bool] = True

    start_share: float = Field(0.75, ge=0.0, lt=1.0)
    """Share of the run's optimizer steps after which averaging begins."""
    every: int = Field(1, ge=1)
    """Optimizer steps from one averaged point to the next; the paper takes an epoch's."""

    def start(self, model: PreTrainedModel) -> AtWork:
        """See `Regularizer.start`."""
        return _Average(model, self)


class _Average(Averaging):
    def __init__(self, model: PreTrainedModel, options: Swa) -> None:
        super().__init__(model)
        self.options = options

    def after_step(self, step: int, total: int) -> None:
        """See `AtWork.after_step`."""
        since = step - math.floor(self.options.start_share * total)
        if since > 0 and (since - 1) % self.options.every == 0:
            self.mean.add(1 / (self.mean.count + 1))
