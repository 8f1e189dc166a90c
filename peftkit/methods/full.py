"""Full fine-tuning: every weight trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from peftkit.methods import TuningContext, TuningMethod, methods

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@methods.register("full")
class Full(TuningMethod):
    """All weights train; the run saves the whole model instead of an adapter."""

    paper: ClassVar[str] = "Devlin et al. 2018, arXiv:1810.04805"
    use_when: ClassVar[str] = "memory and storage do not matter, or the adapters fall short"
    trains_base_weights: ClassVar[bool] = True
    base_bits: ClassVar[frozenset[int]] = frozenset({32})
    default_learning_rate: ClassVar[float] = 5e-5

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The same model, everything trainable."""
        return model.requires_grad_(True)
