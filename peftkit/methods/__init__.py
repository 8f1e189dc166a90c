"""Tuning methods: which weights train, and what is added to the model so that few have to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.methods.context import Addition, TuningContext
from peftkit.registry import Component, Registry

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

__all__ = ["Addition", "TuningContext", "TuningMethod", "methods", "wrapped"]


class TuningMethod(Component):
    """Which weights train."""

    paper: ClassVar[str] = ""
    """Where the method comes from: authors, year, arXiv number."""
    use_when: ClassVar[str] = ""
    """One line for users who choose a method."""
    default_learning_rate: ClassVar[float]

    # Facts, which a recipe's other parts are held against before anything is loaded.
    trains_base_weights: ClassVar[bool] = False
    """Whether all weights of the base itself change; it needs an unquantized base and saves a whole model."""
    mergeable: ClassVar[bool] = False
    """Whether the result can be folded into the base weights without changing outputs."""
    base_bits: ClassVar[frozenset[int]] = frozenset({4, 8, 16, 32})
    """Bits per stored weight of the bases that the method can sit on."""
    adapts_conv1d: ClassVar[bool] = True
    """Whether it can change GPT-2's transposed linear layers."""
    allows_gradient_checkpointing: ClassVar[bool] = True
    runs_to_the_end: ClassVar[bool] = False
    """Whether only the weights of the last step are a result, whatever earlier evaluations said."""
    per_token: ClassVar[bool] = True
    """Whether what it adds is computed of each token by itself, so that padding need not be there."""
    starts_at_base: ClassVar[bool] = True
    """Whether the weights that train start where they leave the base as it is."""
    task_types: ClassVar[frozenset[str] | None] = None
    """peft task types the method is made for; None: all."""

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """Why this method cannot tune `model`, in one sentence with what to do instead; None if it can.

        Args:
            model: the base model with its head; its weights may not be there yet (meta device).
        """
        from peftkit.methods.targets import stores_weights_transposed

        if context.base_bits not in self.base_bits:
            return self._refuses_storage(context)
        if not self.adapts_conv1d and stores_weights_transposed(model):
            return (
                f"method {self.name!r} cannot change the Conv1D layers of {type(model).__name__}, whose weights are "
                "stored transposed; choose a method that can, such as lora"
            )
        if context.gradient_checkpointing and not self.allows_gradient_checkpointing:
            return (
                f"method {self.name!r} does not allow training.gradient_checkpointing: "
                "the recomputed pass would give other gradients; turn it off"
            )
        if self.task_types is not None and context.peft_task_type not in self.task_types:
            return (
                f"method {self.name!r} is made for {', '.join(sorted(self.task_types))}, "
                f"not for {context.peft_task_type}; choose another method"
            )
        return None

    def _refuses_storage(self, context: TuningContext) -> str:
        if self.trains_base_weights and context.base_bits < 16:
            return (
                f"method {self.name!r} trains the base weights, which {context.base} stores as integers; "
                "take a base that is not quantized, or a method that adds weights, such as lora"
            )
        able = ", ".join(f"{able}-bit" for able in sorted(self.base_bits))
        return f"method {self.name!r} does not work on {context.base}; it works on: {able}"

    def full_precision_modules(self, model: PreTrainedModel, *, head_modules: Sequence[str]) -> tuple[str, ...]:
        """Names of base modules that a quantizer has to leave as they are, because the method trains them."""
        return ()

    def addition(self, model: PreTrainedModel, context: TuningContext) -> Addition | None:
        """What this method trains beside another one; None: it cannot be added to any."""
        return None

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add what the method needs to the tokenizer, before any row is encoded."""

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model with just those weights trainable that this method tunes; changes `model` in place.

        Raises:
            CapabilityError: the method does not fit this architecture.
        """
        raise NotImplementedError

    def learning_rates(self, model: PreTrainedModel, *, learning_rate: float) -> Mapping[str, float]:
        """Learning rates of parameters, by name, that differ from `learning_rate`."""
        return {}

    def penalty(self, model: PreTrainedModel) -> Tensor | None:
        """What the method adds to the loss of every optimizer step; None: nothing."""
        return None

    def finish(self, model: PreTrainedModel) -> None:
        """Bring the trained model, in place, into the form that is scored and saved."""

    def state(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """What a checkpoint has to keep beside the trainable parameters, so that a resumed run is the same run."""
        return {}

    def restore(self, model: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave; the trainable parameters are restored already."""

    def callbacks(self) -> Sequence[TrainerCallback]:
        """What the method needs to do while training runs."""
        return ()


def wrapped(model: PreTrainedModel, config: Any, *, method: str) -> PreTrainedModel:
    """`model` as a `PeftModel`.

    Raises:
        CapabilityError: peft refuses; the message carries its reason.
    """
    from peft import get_peft_model

    from peftkit.errors import CapabilityError

    try:
        return get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError, AttributeError, KeyError, RuntimeError) as problem:
        raise CapabilityError(
            f"method {method!r} cannot tune {type(model).__name__}: {str(problem).strip()}; "
            "choose other method.target_modules or another method"
        ) from problem


methods: Registry[TuningMethod] = Registry("peftkit.methods", "tuning method")
