"""Gradual unfreezing: full tuning that starts at the head and lets one block more train at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from peftkit.methods import TuningContext, TuningMethod, methods

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback


@methods.register("gradual_unfreezing")
class GradualUnfreezing(TuningMethod):
    """All weights train in the end, from the top down: first the head, then block after block, last the embeddings."""

    paper: ClassVar[str] = "Howard & Ruder 2018, arXiv:1801.06146, section 3.3"
    use_when: ClassVar[str] = "full tuning forgets too much: little data, far from what the base has seen"
    trains_base_weights: ClassVar[bool] = True
    base_bits: ClassVar[frozenset[int]] = frozenset({16, 32})
    default_learning_rate: ClassVar[float] = 1e-4

    every: Literal["epoch"] | Annotated[int, Field(ge=1)] = "epoch"
    """A stage lasts an epoch, or so many optimizer steps."""
    blocks_per_stage: int = Field(1, ge=1)
    """Blocks that every stage adds to those that train."""
    learning_rate_decay: float = Field(1.0, gt=0.0, le=1.0)
    """Each stage's blocks learn so much slower than those above; the paper has 1 / 2.6 (section 3.1)."""

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; also: a model without repeated blocks."""
        from peftkit.layers.blocks import block_lists

        if not block_lists(model):
            return f"method {self.name!r} finds no repeated blocks in {type(model).__name__}; use full"
        return super().problem(model, context)

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The same model, everything trainable: the callback freezes once the optimizer holds every weight."""
        return model.requires_grad_(True)

    def learning_rates(self, model: PreTrainedModel, *, learning_rate: float) -> Mapping[str, float]:
        """Lower rates for lower blocks; see `TuningMethod.learning_rates`."""
        from peftkit.layers.unfreezing import depth_groups

        groups = depth_groups(model, blocks_per_stage=self.blocks_per_stage)
        decay = self.learning_rate_decay
        return {name: learning_rate * decay**depth for depth, group in enumerate(groups) for name in group}

    def callbacks(self) -> Sequence[TrainerCallback]:
        """What thaws the blocks."""
        from peftkit.layers.unfreezing import Unfreeze

        return (Unfreeze(self.every, blocks_per_stage=self.blocks_per_stage),)
