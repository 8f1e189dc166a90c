"""BitFit: training the biases only."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from peftkit.errors import CapabilityError
from peftkit.methods import TuningContext, TuningMethod, methods, wrapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@methods.register("bitfit")
class BitFit(TuningMethod):
    """Trains the biases of linear and layer-norm layers, as changes added to them, and leaves all matrices alone.

    Ben-Zaken et al. 2022, arXiv:2106.10199.
    """

    paper: ClassVar[str] = "Ben-Zaken et al. 2022, arXiv:2106.10199"
    use_when: ClassVar[str] = (
        "the adapter has to be tiny (0.1 % of the base) and the model has biases: BERT, RoBERTa, GPT-2, not LLaMA or T5"
    )
    default_learning_rate: ClassVar[float] = 3e-3
    mergeable: ClassVar[bool] = True

    targets: Literal["all", "query_and_intermediate"] = "all"
    """all: every bias outside the head; query_and_intermediate: those of the query layers and of the first feed-forward
    layers, which in the paper do nearly as well at half the size."""

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; also models without biases."""
        if found := super().problem(model, context):
            return found
        try:
            self._names(model, context)
        except CapabilityError as problem:
            return f"method {self.name!r} cannot tune this model: {problem}"
        return None

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        from peftkit.layers.bias import BitFitConfig
        from peftkit.layers.sublayers import shortest_names

        config = BitFitConfig(
            task_type=context.peft_task_type,
            targets=self.targets,
            target_modules=shortest_names(model, self._names(model, context)),
            modules_to_save=context.modules_to_save,
            trainable_token_indices=list(context.new_token_ids) or None,
        )
        return wrapped(model, config, method=self.name)

    def _names(self, model: PreTrainedModel, context: TuningContext) -> list[str]:
        from peftkit.layers.bias import find_biases

        return find_biases(model, targets=self.targets, skip=context.modules_to_save or ())
