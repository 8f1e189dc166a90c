"""Bottleneck adapters: small two-layer networks inside the blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from peftkit.errors import CapabilityError
from peftkit.methods import TuningContext, TuningMethod, methods, wrapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@methods.register("bottleneck")
class Bottleneck(TuningMethod):
    """Small networks W_up f(W_down h) inside each block, added to what its sub-layers give; the base stays frozen.

    Houlsby et al. 2019, arXiv:1902.00751, section 2; Pfeiffer et al. 2021, arXiv:2005.00247, section 3; He et al. 2022,
    arXiv:2110.04366, section 3.
    """

    paper: ClassVar[str] = (
        "Houlsby et al. 2019, arXiv:1902.00751; Pfeiffer et al. 2021, arXiv:2005.00247; "
        "He et al. 2022, arXiv:2110.04366"
    )
    use_when: ClassVar[str] = "many tasks share one base and lora falls short; costs time in every pass"
    default_learning_rate: ClassVar[float] = 3e-3

    style: Literal["houlsby", "pfeiffer", "parallel", "scaled_parallel"] = "pfeiffer"
    """houlsby: after attention and after the feed-forward part; pfeiffer: after the feed-forward part only; parallel:
    beside the feed-forward part, reading its input; scaled_parallel: the same, times `scale`."""
    reduction_factor: int = Field(16, ge=1)
    """Hidden size divided by the width of the bottleneck."""
    width: int | None = Field(None, ge=1)
    """Width of the bottleneck itself, instead of `reduction_factor`."""
    non_linearity: Literal["relu", "gelu", "silu", "swish", "tanh"] = "relu"
    """Between the two layers; silu and swish are the same. Houlsby et al. use gelu, the other papers relu."""
    scale: float | None = Field(None, gt=0.0)
    """Factor on the output, of scaled_parallel only; none: 4, as in the paper."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the bottleneck's activations that is dropped while training."""
    init: Literal["zero", "normal"] = "zero"
    """zero: the upper layer starts at zero and outputs exactly as the base's; normal: both layers at N(0, 0.01)."""

    @model_validator(mode="after")
    def _scale_has_its_style(self) -> Bottleneck:
        if self.scale is not None and self.style != "scaled_parallel":
            raise ValueError(f"scale belongs to style scaled_parallel, not to {self.style}; change one of them")
        return self

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; also blocks whose sub-layers cannot be told apart."""
        from peftkit.layers.sublayers import find_blocks

        if found := super().problem(model, context):
            return found
        try:
            find_blocks(model)
        except CapabilityError as problem:
            return f"method {self.name!r} cannot tune this model: {problem}"
        return None

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        from peftkit.layers.bottleneck import BottleneckConfig

        config = BottleneckConfig(
            task_type=context.peft_task_type,
            modules_to_save=context.modules_to_save,
            trainable_token_indices=list(context.new_token_ids) or None,
            **self.model_dump(),
        )
        return wrapped(model, config, method=self.name)
