"""What prefix, prompt and p-tuning share: positions that stand for no token, and how peft is told of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.methods import TuningContext, TuningMethod, wrapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class VirtualTokens(TuningMethod):
    """A method that puts trained positions before the input."""

    allows_gradient_checkpointing: ClassVar[bool] = False
    starts_at_base: ClassVar[bool] = False

    virtual_tokens: int = Field(20, ge=1)
    """Trained positions before the input."""

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; also: more positions than the model has."""
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is not None and self.virtual_tokens >= positions:
            return (
                f"method.virtual_tokens {self.virtual_tokens} leaves no room for the input: {type(model).__name__} has "
                f"{positions} positions; use fewer"
            )
        return super().problem(model, context)

    def wrapped(self, model: PreTrainedModel, config: Any, context: TuningContext) -> PreTrainedModel:
        """`model` as a `PeftModel` whose outputs are as long as its inputs, and whose head trains."""
        from peftkit.layers.virtual_tokens import fit_outputs

        return fit_outputs(wrapped(model, config, method=self.name), head_modules=context.head_modules)


def dimensions(model: PreTrainedModel) -> dict[str, int]:
    """Sizes that peft's prompt configurations need and cannot always find out by themselves.

    Raises:
        CapabilityError: the model's configuration does not state one of them.
    """
    from peftkit.errors import CapabilityError

    config = model.config.get_text_config()
    names = {
        "token_dim": ("hidden_size", "d_model", "n_embd", "dim"),
        "num_layers": ("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
        "num_attention_heads": ("num_attention_heads", "num_heads", "n_head", "n_heads"),
    }
    found = {}
    for wanted, spellings in names.items():
        values = [getattr(config, name) for name in spellings if getattr(config, name, None)]
        if not values:
            raise CapabilityError(
                f"the configuration of {type(model).__name__} does not state its {wanted} "
                f"(looked for {', '.join(spellings)}), which virtual tokens need; use lora"
            )
        found[wanted] = int(values[0])
    return found
