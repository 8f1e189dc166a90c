"""(IA)3: trained vectors that scale keys, values and the inside of the feed-forward sub-layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from peftkit.errors import CapabilityError
from peftkit.methods import TuningContext, TuningMethod, methods, wrapped
from peftkit.methods.targets import linear_layers, stores_weights_transposed

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_KEYS_AND_VALUES = re.compile(r"(^|[._])(k|v|key|value|k_proj|v_proj|k_lin|v_lin|c_attn|qkv|query_key_value|qkv_proj)$")


@methods.register("ia3")
class IA3(TuningMethod):
    """Trained vectors scale the keys, the values and the inner activations of each feed-forward sub-layer."""

    paper: ClassVar[str] = "Liu et al. 2022, arXiv:2205.05638"
    use_when: ClassVar[str] = "few examples, and adapters of some kilobytes"
    mergeable: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 1e-2

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `TuningMethod.problem`; also: no keys and values, or blocks that are not understood."""
        try:
            places(model)
        except CapabilityError as problem:
            return f"method {self.name!r} cannot be put into {type(model).__name__}: {problem}; use lora"
        return super().problem(model, context)

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        from peft import IA3Config

        keys_and_values, feed_forward = places(model)
        config = IA3Config(
            task_type=context.peft_task_type,
            target_modules=[*keys_and_values, *feed_forward],
            feedforward_modules=list(feed_forward),
            modules_to_save=context.modules_to_save,
            fan_in_fan_out=stores_weights_transposed(model),
        )
        return wrapped(model, config, method=self.name)


def places(model: nn.Module) -> tuple[Sequence[str], Sequence[str]]:
    """Names of the projections to keys and values (scaled at their output) and of the output projections of the
    feed-forward sub-layers (scaled at their input).

    Raises:
        CapabilityError: they are not found; the message says what there is.
    """
    from peftkit.layers.sublayers import find_blocks

    feed_forward = [block.full(block.feed_forward_output) for block in find_blocks(model)]
    keys_and_values = [name for name in linear_layers(model) if _KEYS_AND_VALUES.search(name)]
    if not keys_and_values:
        raise CapabilityError("it has no linear layers named like keys and values")
    return keys_and_values, feed_forward
