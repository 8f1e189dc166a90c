"""LoRA: low-rank updates beside frozen linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from peftkit.errors import CapabilityError
from peftkit.methods import TuningContext, TuningMethod, methods
from peftkit.methods.lora_start import Start, start_problem, started
from peftkit.methods.patterns import by_pattern
from peftkit.methods.targets import Targets, find_targets, in_blocks, stores_weights_transposed, target_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LowRank(TuningMethod):
    """What plain LoRA and its variants have in common."""

    mergeable: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 1e-3
    decomposed: ClassVar[bool] = False
    """Whether magnitude and direction of each weight train apart (DoRA)."""

    rank: int = Field(8, ge=1)
    """Rows of A and columns of B."""
    alpha: float = Field(16.0, gt=0)
    """The update is scaled by alpha / rank, or alpha / sqrt(rank) with `rank_stabilized`."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the update's inputs that is dropped while training."""
    target_modules: Targets = "all-linear"
    """Layers that get an update: attention, mlp, all-linear, or a list of endings of module names; never the head."""
    layers: tuple[int, ...] | None = None
    """Numbers of the blocks that get updates, from 0; none: all."""
    rank_pattern: Mapping[str, PositiveInt] = {}
    """Other ranks for layers whose name ends so: {"mlp.down_proj": 16}."""
    alpha_pattern: Mapping[str, PositiveFloat] = {}
    """Other alphas, likewise."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones (rsLoRA, arXiv:2312.03732)."""
    init: Start = "default"
    """How A and B start. default: B is zero; gaussian: likewise, A normal; orthogonal: orthogonal halves, so that B A
    is zero; pissa, olora: parts of the weight, by SVD or QR; corda: the part that acts most on the inputs of some
    training batches; loftq: what quantization loses; eva: B is zero, A the principal directions of these inputs, ranks
    shared out among layers. After pissa, olora and corda the saved adapter has twice the rank."""
    learning_rate_ratio: float = Field(1.0, ge=1.0)
    """B learns so many times as fast as A (LoRA+, arXiv:2402.12354)."""
    freeze_a: bool = False
    """Train B only: less memory for activations (LoRA-FA, arXiv:2308.03303)."""

    @model_validator(mode="after")
    def _fits_together(self) -> LowRank:
        if self.freeze_a and self.learning_rate_ratio != 1.0:
            raise ValueError("learning_rate_ratio compares A and B, but freeze_a leaves A out; remove one of them")
        return self

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; also: layers that are not there, a start that does not suit the base."""
        try:
            ranks = self._ranks(model, context)
        except CapabilityError as problem:
            return str(problem)
        return start_problem(self.init, ranks, model, context) or super().problem(model, context)

    def _layers(self, model: PreTrainedModel, context: TuningContext) -> list[str]:
        """Names of the layers that get an update."""
        chosen = target_layers(model, self.target_modules, head_modules=context.head_modules)
        return chosen if self.layers is None else in_blocks(model, chosen, self.layers)

    def _ranks(self, model: PreTrainedModel, context: TuningContext) -> dict[str, int]:
        """The rank of each layer that gets an update, by its name.

        Raises:
            CapabilityError: a layer or a pattern is not there.
        """
        layers = self._layers(model, context)
        by_pattern(layers, self.alpha_pattern, default=self.alpha, option="alpha_pattern")
        return by_pattern(layers, self.rank_pattern, default=self.rank, option="rank_pattern")

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        from peft import LoraConfig

        targets = find_targets(model, self.target_modules, head_modules=context.head_modules)
        config = LoraConfig(
            task_type=context.peft_task_type,
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets if self.layers is None else self._layers(model, context),
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            use_rslora=self.rank_stabilized,
            use_dora=self.decomposed,
            modules_to_save=context.modules_to_save,
            trainable_token_indices=list(context.new_token_ids) or None,
            fan_in_fan_out=stores_weights_transposed(model),
        )
        tuned = started(self.init, model, config=config, context=context, method=self.name)
        if self.freeze_a:
            for name, weight in tuned.named_parameters():
                if ".lora_A." in name:
                    weight.requires_grad_(False)
        return tuned

    def learning_rates(self, model: PreTrainedModel, *, learning_rate: float) -> Mapping[str, float]:
        """B's own learning rate; see `TuningMethod.learning_rates`."""
        if self.learning_rate_ratio == 1.0:
            return {}
        faster = self.learning_rate_ratio * learning_rate
        return {name: faster for name, weight in model.named_parameters() if weight.requires_grad and _is_b(name)}

    def finish(self, model: PreTrainedModel) -> None:
        """Make A and B that began from a part of the weight plain ones; see `TuningMethod.finish`."""
        from peftkit.layers.low_rank_start import settle

        settle(model)


def _is_b(name: str) -> bool:
    return ".lora_B." in name or ".lora_embedding_B." in name


@methods.register("lora")
class Lora(LowRank):
    """Low-rank updates beside frozen linear layers: y = W x + (alpha / rank) B A x.

    Hu et al. 2021, arXiv:2106.09685, section 4.
    """

    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685"
    use_when: ClassVar[str] = "the first thing to try, on any model and any precision"
