"""L2-SP: weights stay near where they started."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.regularizers import AtWork, Regularizer, regularizers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@regularizers.register("l2_sp")
class L2Sp(Regularizer):
    """strength / 2 times the squared distance of all that trains from where it started.

    Li, Grandvalet & Davoine 2018, arXiv:1802.01483, section 3.2: for full and partial tuning, the starting point is the
    base; the update of an adapter starts at zero.
    """

    paper: ClassVar[str] = "Li, Grandvalet & Davoine 2018, arXiv:1802.01483"

    strength: float = Field(0.01, gt=0.0)
    """Weight of the distance."""

    def start(self, model: PreTrainedModel) -> AtWork:
        """See `Regularizer.start`."""
        return _Distance(model, self.strength)


class _Distance(AtWork):
    def __init__(self, model: PreTrainedModel, strength: float) -> None:
        self.strength = strength
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.pairs = [(weight, weight.detach().clone()) for weight in trained]

    def penalty(self) -> Tensor:
        """See `AtWork.penalty`."""
        import torch

        squares = [(weight - start.to(weight.device)).square().sum() for weight, start in self.pairs]
        return self.strength / 2 * torch.stack(squares).sum()
