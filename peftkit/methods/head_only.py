"""Linear probe: the base stays as it is, only the new head trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from peftkit.methods import Addition, TuningContext, TuningMethod, methods
from peftkit.methods.retrained import retrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@methods.register("head_only")
class HeadOnly(TuningMethod):
    """Only the task's new head trains, on the features of an untouched base (linear probe)."""

    paper: ClassVar[str] = "Alain & Bengio 2016, arXiv:1610.01644"
    use_when: ClassVar[str] = "a baseline in minutes: shows what the base already knows"
    mergeable: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 5e-3

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; a model without a new head has nothing to train."""
        if not context.modules_to_save:
            return (
                f"method {self.name!r} trains the new head only, and {type(model).__name__} gets none for this task; "
                "use last_layers or lora"
            )
        return super().problem(model, context)

    def addition(self, model: PreTrainedModel, context: TuningContext) -> Addition:
        """See `TuningMethod.addition`."""
        return Addition()

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel` that holds the head alone; see `TuningMethod.apply`."""
        return retrained(model, (), context, method=self.name)
