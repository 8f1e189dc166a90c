"""Averages of the weights that train, over the steps of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from peftkit.regularizers import AtWork

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import PreTrainedModel

_COUNT = "count"


class RunningMean:
    """A weighted mean of what the weights that train have been."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.means = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.count = 0
        """How often it was added to."""

    def add(self, share: float) -> None:
        """Move the mean by `share` of the way to the present weights."""
        self.count += 1
        for name, weight in self.weights.items():
            self.means[name].lerp_(weight.detach(), share)

    def values(self) -> dict[Parameter, Tensor]:
        """The mean of every weight."""
        return {weight: self.means[name] for name, weight in self.weights.items()}

    def state(self) -> dict[str, Tensor]:
        """See `AtWork.state`."""
        import torch

        return {_COUNT: torch.tensor(self.count), **self.means}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `AtWork.restore`."""
        self.count = int(state[_COUNT])
        for name, mean in self.means.items():
            mean.copy_(state[name])


class Averaging(AtWork):
    """Evaluates and saves a running mean of the weights, once there is one."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.mean = RunningMean(model)

    def averages(self) -> Mapping[Parameter, Tensor]:
        """See `AtWork.averages`."""
        return self.mean.values() if self.mean.count else {}

    def state(self) -> Mapping[str, Tensor]:
        """See `AtWork.state`."""
        return self.mean.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `AtWork.restore`."""
        self.mean.restore(state)
