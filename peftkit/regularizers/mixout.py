"""Mixout: weights that train are mixed with their start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.regularizers import AtWork, Regularizer, regularizers

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import PreTrainedModel


@regularizers.register("mixout")
class Mixout(Regularizer):
    """In every pass, each value of the weights that train is with some probability that of the start, as in dropout.

    Lee et al. 2020, arXiv:1909.11299, equation 5: dropout towards the start instead of towards zero; the expected
    weights are the trained ones. It was made for `full`, whose start is the base. An adapter is mixed with its start,
    which leaves the base as it is; a new head with its random start.
    """

    paper: ClassVar[str] = "Lee, Cho & Kang 2020, arXiv:1909.11299"
    needs_start_at_base: ClassVar[bool] = True
    allows_gradient_checkpointing: ClassVar[bool] = False

    probability: float = Field(0.5, gt=0.0, lt=1.0)
    """Of each value to be that of the start."""

    def start(self, model: PreTrainedModel) -> AtWork:
        """See `Regularizer.start`."""
        return _Mixing(model, self.probability)


class _Mixing(AtWork):
    def __init__(self, model: PreTrainedModel, probability: float) -> None:
        from peftkit.regularizers.substitution import Places

        self.probability = probability
        self.starts = {weight: weight.detach().clone() for weight in model.parameters() if weight.requires_grad}
        self.places: Places = []
        model.register_forward_pre_hook(self._mix)
        model.register_forward_hook(self._end, always_call=True)

    def _mix(self, model: Any, args: tuple[Any, ...]) -> None:
        from peftkit.regularizers.substitution import substitute

        if model.training:
            mixed = {weight: self._mixed(weight, start) for weight, start in self.starts.items()}
            self.places = substitute(model, mixed)

    def _end(self, model: Any, args: tuple[Any, ...], output: Any) -> None:
        from peftkit.regularizers.substitution import put_back

        put_back(self.places)
        self.places = []

    def _mixed(self, weight: Parameter, start: Tensor) -> Tensor:
        import torch

        kept = torch.empty_like(start).bernoulli_(1 - self.probability)
        # start + (weight - start) * kept / (1 - p) is the paper's formula with its terms collected.
        mixed: Tensor = start + (weight - start) * kept / (1 - self.probability)
        return mixed
