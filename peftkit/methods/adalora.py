"""AdaLoRA: low-rank updates whose ranks are given, step by step, to the matrices that need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from peftkit.methods import TuningContext, TuningMethod, methods, wrapped
from peftkit.methods.targets import Targets, find_targets, stores_weights_transposed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, TrainerCallback


@methods.register("adalora")
class AdaLora(TuningMethod):
    """Low-rank updates P E Q in the form of a singular value decomposition, whose least important values are pruned.

    Every matrix starts with `init_rank`; importance of singular values decides which stay until, on average, every
    matrix keeps `target_rank` (sections 3.1 to 3.3). The weights of the last step are kept, not those of the best
    evaluation, because before the end the budget is larger than asked for.
    """

    paper: ClassVar[str] = "Zhang et al. 2023, arXiv:2303.10512"
    use_when: ClassVar[str] = (
        "the same budget as lora, spent where it matters; training is long enough to find out where"
    )
    mergeable: ClassVar[bool] = True
    runs_to_the_end: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 3e-3

    target_rank: int = Field(8, ge=1)
    """Mean rank of the matrices at the end."""
    init_rank: int | None = Field(None, ge=1)
    """Rank of every matrix at the start; none: 1.5 times `target_rank`."""
    alpha: int = Field(16, ge=1)
    """The update is scaled by alpha / init_rank."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the update's inputs that is dropped while training."""
    target_modules: Targets = "all-linear"
    """Layers that get an update: attention, mlp, all-linear, or a list of endings of module names; never the head."""
    warmup_share: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of all steps before pruning begins."""
    final_share: float = Field(0.3, gt=0.0, lt=1.0)
    """Share of all steps after pruning has ended, in which ranks stay as they are."""
    interval: int = Field(10, ge=1)
    """Steps between two allocations of the budget."""
    beta1: float = Field(0.85, gt=0.0, lt=1.0)
    """Smoothing of the importance over steps."""
    beta2: float = Field(0.85, gt=0.0, lt=1.0)
    """Smoothing of the importance's uncertainty over steps."""
    orthogonality: float = Field(0.5, ge=0.0)
    """Weight of the penalty that keeps P and Q orthogonal (equation 4)."""

    @model_validator(mode="after")
    def _fits_together(self) -> AdaLora:
        if self.init_rank is not None and self.init_rank < self.target_rank:
            raise ValueError(f"init_rank {self.init_rank} is below target_rank {self.target_rank}; ranks only shrink")
        if self.warmup_share + self.final_share >= 1.0:
            raise ValueError(
                f"warmup_share {self.warmup_share:g} and final_share {self.final_share:g} leave no step to prune in; "
                "together they must stay below 1"
            )
        return self

    @property
    def start_rank(self) -> int:
        """Rank of every matrix at the start."""
        return self.init_rank or round(1.5 * self.target_rank)

    def schedule(self, total_steps: int) -> tuple[int, int]:
        """Steps before pruning begins, and steps after it has ended."""
        return round(self.warmup_share * total_steps), max(1, round(self.final_share * total_steps))

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; also: a run too short for its schedule."""
        first, last = self.schedule(context.total_steps)
        pruning = context.total_steps - first - last
        if pruning < 2:
            return (
                f"method {self.name!r} needs at least 2 steps between warm-up and final phase, but of the run's "
                f"{context.total_steps} optimizer steps {first} and {last} leave {max(pruning, 0)}; "
                "train longer or use lora"
            )
        return super().problem(model, context)

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        from peft import AdaLoraConfig

        from peftkit.layers.rank_allocation import keep_divisors

        first, last = self.schedule(context.total_steps)
        config = AdaLoraConfig(
            task_type=context.peft_task_type,
            init_r=self.start_rank,
            target_r=self.target_rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            tinit=first,
            tfinal=last,
            deltaT=self.interval,
            beta1=self.beta1,
            beta2=self.beta2,
            orth_reg_weight=self.orthogonality,
            total_step=context.total_steps,
            target_modules=find_targets(model, self.target_modules, head_modules=context.head_modules),
            modules_to_save=context.modules_to_save,
            trainable_token_indices=list(context.new_token_ids) or None,
            fan_in_fan_out=stores_weights_transposed(model),
        )
        tuned = wrapped(model, config, method=self.name)
        keep_divisors(tuned)
        return tuned

    def penalty(self, model: PreTrainedModel) -> Tensor | None:
        """Mean distance of P'P and QQ' from the identity, weighted; see `TuningMethod.penalty`."""
        from peftkit.layers.rank_allocation import orthogonality_penalty

        return self.orthogonality * orthogonality_penalty(model) if self.orthogonality else None

    def finish(self, model: PreTrainedModel) -> None:
        """Cut pruned singular values off; see `TuningMethod.finish`."""
        from peftkit.layers.rank_allocation import cut_pruned

        cut_pruned(model)

    def state(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """Importance of every parameter and the present ranks; see `TuningMethod.state`."""
        from peftkit.layers.rank_allocation import allocator_state

        return allocator_state(model)

    def restore(self, model: PreTrainedModel, state: Mapping[str, Any]) -> None:
        """See `TuningMethod.restore`."""
        from peftkit.layers.rank_allocation import restore_allocator

        restore_allocator(model, state)

    def callbacks(self) -> Sequence[TrainerCallback]:
        """What steps the allocator and notes the ranks."""
        from peftkit.layers.rank_allocation import AllocateRanks

        return (AllocateRanks(self.interval),)
