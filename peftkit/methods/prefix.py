"""Prefix tuning: trained keys and values in front of every layer's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.methods import TuningContext, methods
from peftkit.methods.virtual_tokens import VirtualTokens, dimensions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@methods.register("prefix")
class Prefix(VirtualTokens):
    """Trained keys and values stand in front of every layer's own; the input itself stays as it is."""

    paper: ClassVar[str] = "Li & Liang 2021, arXiv:2101.00190"
    use_when: ClassVar[str] = "one base serves many tasks in one batch; generation with few rows"
    default_learning_rate: ClassVar[float] = 1e-2

    reparameterisation: bool = False
    """Train the prefix through a two-layer network, which is dropped when training ends (paper, section 4.3)."""
    encoder_hidden_size: int | None = Field(None, ge=1)
    """Width of that network; none: the model's width."""

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; also: attention that takes no keys and values from outside."""
        from inspect import signature

        if not any("past_key_values" in signature(part.forward).parameters for part in (model, model.base_model)):
            return (
                f"method {self.name!r} hands keys and values to the attention, which {type(model).__name__} does not "
                "take; use prompt or lora"
            )
        return super().problem(model, context)

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        from peft import PrefixTuningConfig

        sizes = dimensions(model)
        config = PrefixTuningConfig(
            task_type=context.peft_task_type,
            modules_to_save=context.modules_to_save,
            num_virtual_tokens=self.virtual_tokens,
            prefix_projection=self.reparameterisation,
            encoder_hidden_size=self.encoder_hidden_size or sizes["token_dim"],
            **sizes,
        )
        return self.wrapped(model, config, context)

    def finish(self, model: PreTrainedModel) -> None:
        """Drop the network that the prefix was trained through; see `TuningMethod.finish`."""
        if self.reparameterisation:
            from peftkit.layers.virtual_tokens import settle_prompt

            settle_prompt(model)
