"""P-tuning: embeddings before the input that a small network makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from peftkit.methods import TuningContext, methods
from peftkit.methods.virtual_tokens import VirtualTokens, dimensions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@methods.register("p_tuning")
class PTuning(VirtualTokens):
    """Embeddings before the input, trained through a small network that is dropped when training ends."""

    paper: ClassVar[str] = "Liu et al. 2021, arXiv:2103.10385"
    use_when: ClassVar[str] = "as prompt, where that one learns too slowly"
    default_learning_rate: ClassVar[float] = 5e-3

    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network."""
    encoder_hidden_size: int | None = Field(None, ge=1)
    """Width of the network; none: the model's width."""

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        from peft import PromptEncoderConfig

        sizes = dimensions(model)
        config = PromptEncoderConfig(
            task_type=context.peft_task_type,
            modules_to_save=context.modules_to_save,
            num_virtual_tokens=self.virtual_tokens,
            encoder_reparameterization_type=self.encoder.upper(),
            encoder_hidden_size=self.encoder_hidden_size or sizes["token_dim"],
            **sizes,
        )
        return self.wrapped(model, config, context)

    def finish(self, model: PreTrainedModel) -> None:
        """Drop the network that the prompt was trained through; see `TuningMethod.finish`."""
        from peftkit.layers.virtual_tokens import settle_prompt

        settle_prompt(model)
