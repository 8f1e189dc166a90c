"""LoRA: low-rank updates beside frozen linear layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.methods import TuningContext, TuningMethod, methods
from peftkit.methods.targets import Targets, find_targets, stores_weights_transposed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@methods.register("lora")
class Lora(TuningMethod):
    """Low-rank updates beside frozen linear layers: y = W x + (alpha / rank) B A x.

    Hu et al. 2021, arXiv:2106.09685, section 4.
    """

    mergeable: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 1e-3

    rank: int = Field(8, ge=1)
    """Rows of A and columns of B."""
    alpha: int = Field(16, ge=1)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the update's inputs that is dropped while training."""
    target_modules: Targets = "all-linear"
    """Layers that get an update: attention, mlp, all-linear, or a list of endings of module names; never the head."""

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            task_type=context.peft_task_type,
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=find_targets(model, self.target_modules, head_modules=context.head_modules),
            modules_to_save=list(context.head_modules) or None,
            fan_in_fan_out=stores_weights_transposed(model),
        )
        return get_peft_model(model, config)
