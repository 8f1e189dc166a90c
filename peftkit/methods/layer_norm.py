"""LayerNorm tuning: only the normalisation layers train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from peftkit.methods import Addition, TuningContext, TuningMethod, methods
from peftkit.methods.retrained import retrained

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@methods.register("layer_norm")
class LayerNorm(TuningMethod):
    """The weights and biases of all normalisation layers train, fewer than one parameter in a thousand."""

    paper: ClassVar[str] = "Zhao et al. 2023, arXiv:2312.11420"
    use_when: ClassVar[str] = "the smallest adapters that still reach every layer, on any architecture"
    mergeable: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 3e-3

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; also: a model without normalisation layers."""
        if not norms(model, context.head_modules):
            return f"method {self.name!r} finds no normalisation layer in {type(model).__name__}; use lora"
        return super().problem(model, context)

    def addition(self, model: PreTrainedModel, context: TuningContext) -> Addition:
        """See `TuningMethod.addition`."""
        return Addition(tuple(norms(model, context.head_modules)))

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel` that holds copies of the norms; see `TuningMethod.apply`."""
        # peft's own LN_TUNING does the same, but warns of every norm that it does not know the widths of.
        return retrained(model, norms(model, context.head_modules), context, method=self.name)


def norms(model: nn.Module, head_modules: Sequence[str]) -> list[str]:
    """Names of the normalisation layers outside the head: classes called ...Norm with one vector of weights."""
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Norm")
        and getattr(module, "weight", None) is not None
        and module.weight.ndim == 1
        and not any(name == head or name.startswith(f"{head}.") for head in head_modules)
    ]
