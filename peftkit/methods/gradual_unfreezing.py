"""Gradual unfreezing: full fine-tuning that starts at the head and reaches the embeddings last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from peftkit.methods import TuningContext, TuningMethod, methods

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback


@methods.register("gradual_unfreezing")
class GradualUnfreezing(TuningMethod):
    """Trains the head alone, then with the top block, then with one block more, until all weights train (ULMFiT).

    Howard & Ruder 2018, arXiv:1801.06146, section 3.3; its discriminative learning rates (section 3.1) are the option
    `learning_rate_decay`. The run saves the whole model instead of an adapter.
    """

    paper: ClassVar[str] = "Howard & Ruder 2018, arXiv:1801.06146"
    use_when: ClassVar[str] = "full tuning forgets too much: little data, far from what the base has seen"
    trains_base_weights: ClassVar[bool] = True
    base_bits: ClassVar[frozenset[int]] = frozenset({32})
    default_learning_rate: ClassVar[float] = 1e-4

    blocks_per_stage: int = Field(1, ge=1)
    """Blocks that begin to train together, from the top of every stack (an encoder-decoder has two)."""
    every: Literal["epoch", "even"] | Annotated[int, Field(ge=1)] = "even"
    """Length of a stage: epoch, as in the paper; a number of optimizer steps; or even: the run's steps divided among
    the stages, so that a run of any length comes to train every weight."""
    learning_rate_decay: float = Field(1.0, gt=0.0, le=1.0)
    """Factor of the learning rate from each block to the one below; the paper takes 1 / 2.6 = 0.385 for 4 layers, for
    BERT's 12 Sun et al. 2019 (arXiv:1905.05583) find 0.95 best; 1: one rate for all."""

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; also: no repeated blocks, or a run that ends before its last stage."""
        from peftkit.layers.blocks import block_lists
        from peftkit.layers.depth import unfreezing_stages
        from peftkit.layers.unfreezing import too_short

        if not block_lists(model):
            return f"method {self.name!r} finds no repeated blocks in {type(model).__name__}; use full"
        if found := super().problem(model, context):
            return found
        stages = len(unfreezing_stages(model, blocks_per_stage=self.blocks_per_stage))
        lengths = {"epoch": context.steps_per_epoch, "even": context.total_steps // stages}
        steps = self.every if isinstance(self.every, int) else lengths[self.every]
        # Where an epoch's steps are not known, the callback refuses before the first step.
        return None if steps is None else too_short(stages, steps, total_steps=context.total_steps)

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The same model, everything trainable, so that the optimizer holds all; the callback freezes at the start."""
        return model.requires_grad_(True)

    def learning_rates(self, model: PreTrainedModel, *, learning_rate: float) -> Mapping[str, float]:
        """`learning_rate_decay` to the power of a part's distance from the head, times the learning rate."""
        from peftkit.layers.depth import depth_groups

        if self.learning_rate_decay == 1.0:
            return {}
        return {
            name: learning_rate * self.learning_rate_decay**distance
            for distance, group in enumerate(depth_groups(model))
            for name in group
        }

    def callbacks(self) -> Sequence[TrainerCallback]:
        """What freezes and unfreezes; see `TuningMethod.callbacks`."""
        from peftkit.layers.unfreezing import Unfreeze

        return (Unfreeze(blocks_per_stage=self.blocks_per_stage, every=self.every),)
