"""Where the matrices of LoRA start, beyond peft's default."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from peftkit.errors import CapabilityError
from peftkit.methods import TuningContext, wrapped
from peftkit.methods.loftq import make_up_for_quantization, original_weights
from peftkit.methods.patterns import matching
from peftkit.methods.targets import linear_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftkit.layers.layer_inputs import Moments

Start = Literal["default", "gaussian", "orthogonal", "pissa", "olora", "corda", "loftq", "eva"]
SEEN_BATCHES = 32
"""Training batches that EVA and CorDA look at."""
_CUT_OUT = ("pissa", "olora", "corda")
_FROM_DATA = ("corda", "eva")
_WIDENING = 2.0
"""EVA: a layer's rank grows to at most this many times what was asked for, as in peft (its `rho`)."""


def start_problem(start: Start, ranks: Mapping[str, int], model: Any, context: TuningContext) -> str | None:
    """Why `start` does not suit the base, or None.

    Args:
        ranks: of each layer that gets an update, by the layer's name.
    """
    if start in _CUT_OUT and context.base_bits < 16:
        return (
            f"method.init {start} begins with a part of each weight, which {context.base} does not "
            "have exactly; use loftq, or default"
        )
    if start == "loftq" and context.base_bits >= 16:
        return "method.init loftq makes up for what quantization loses, but the base is not quantized; use default"
    if start == "orthogonal" and (odd := [rank for rank in ranks.values() if rank % 2]):
        return f"method.init orthogonal divides the rank into halves, which {odd[0]} does not have; use an even rank"
    if start in (*_CUT_OUT, "loftq", "eva"):
        for name, rank in ranks.items():
            if rank > min(model.get_submodule(name).weight.shape):
                return (
                    f"method.init {start} takes {rank} directions out of each weight, but {name} has only "
                    f"{min(model.get_submodule(name).weight.shape)}; use a smaller rank, or init default"
                )
    return None


def started(
    start: Start, model: PreTrainedModel, *, config: Any, context: TuningContext, method: str
) -> PreTrainedModel:
    """`model` as a `PeftModel` with A and B in their starting place."""
    seen = _seen(start, model, config.target_modules, context) if start in _FROM_DATA else {}
    originals = original_weights(model) if start == "loftq" else {}
    if start in ("gaussian", "orthogonal"):
        config.init_lora_weights = start
    tuned = wrapped(model, config, method=method)
    if start == "eva":
        _start_eva(tuned, seen)
    if start in _CUT_OUT:
        _start_cut_out(tuned, start, seen)
    if start == "loftq":
        make_up_for_quantization(tuned, originals)
    return tuned


def _seen(start: Start, model: Any, targets: Sequence[str], context: TuningContext) -> dict[str, Moments]:
    from peftkit.layers.layer_inputs import input_moments

    if context.batches is None:
        raise CapabilityError(f"method.init {start} looks at training batches, and there are none here; use pissa")
    chosen = [name for name in linear_layers(model) if any(matching(target, [name]) for target in targets)]
    return input_moments(model, chosen, islice(context.batches(), SEEN_BATCHES))


def _start_cut_out(tuned: Any, start: str, seen: Mapping[str, Moments]) -> None:
    """A and B are a part of the weight, which is taken away again beside it."""
    from peftkit.layers import low_rank_start as parts

    adapter = tuned.active_adapter
    for name, layer in parts.updated_layers(tuned):
        weight = parts.oriented(layer.get_base_layer(), layer.get_base_layer().weight.detach().float())
        rank, scaling = layer.r[adapter], layer.scaling[adapter]
        if start == "corda":
            matrices = parts.data_part(weight, rank, scaling, second_moment=seen[name].second_moment)
        else:
            part = parts.principal_part if start == "pissa" else parts.orthonormal_part
            matrices = part(weight, rank, scaling)
        parts.begin_from(layer, adapter, matrices)


def _start_eva(tuned: Any, seen: Mapping[str, Moments]) -> None:
    """A from the principal directions of each layer's inputs; the ranks are shared out by the variance they explain.

    Paischer et al. 2024, arXiv:2410.07170, section 3.
    """
    import torch
    from peft import EvaConfig, initialize_lora_eva_weights

    from peftkit.layers.low_rank_start import updated_layers

    ranks = {name: layer.r[tuned.active_adapter] for name, layer in updated_layers(tuned)}
    found = {name: seen[name].principal_directions() for name in ranks}
    shares = [
        (share, name) for name, rank in ranks.items() for share in found[name][1][: round(_WIDENING * rank)].tolist()
    ]
    best = Counter(name for _, name in sorted(shares, reverse=True)[: sum(ranks.values())])
    directions = {f"base_model.model.{name}": found[name][0][: best[name]] for name in ranks}
    config = tuned.active_peft_config
    config.init_lora_weights, config.eva_config = "eva", EvaConfig(rho=_WIDENING)
    with torch.no_grad():
        initialize_lora_eva_weights(tuned, eva_state_dict=directions)
    # The saved matrices say everything; peft would look for data when it loads them.
    config.init_lora_weights, config.eva_config = True, None
