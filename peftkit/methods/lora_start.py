"""Where the matrices of LoRA start, beyond peft's default."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from peftkit.errors import CapabilityError
from peftkit.methods import TuningContext, wrapped
from peftkit.methods.targets import stores_weights_transposed

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Start = Literal["default", "gaussian", "orthogonal", "pissa", "olora", "loftq", "eva"]
EVA_BATCHES = 32
"""Training batches that EVA looks at (Paischer et al. 2024, arXiv:2410.07170)."""
_ON_WEIGHTS = ("pissa", "olora")


def start_problem(start: Start, model: nn.Module, context: TuningContext) -> str | None:
    """Why `start` does not suit the base, or None."""
    if start in _ON_WEIGHTS and context.base_bits < 16:
        return (
            f"method.init {start} moves a part of each weight into A and B, which a {context.base_bits}-bit base "
            "cannot give away; use loftq, or default"
        )
    if start == "olora" and stores_weights_transposed(model):
        return (
            f"method.init olora is not defined in peft for the transposed weights of {type(model).__name__}; use pissa"
        )
    if start == "loftq" and context.base_bits >= 16:
        return "method.init loftq makes up for what quantization loses, but the base is not quantized; use default"
    return None


def started(
    start: Start, model: PreTrainedModel, *, config: Any, context: TuningContext, method: str
) -> PreTrainedModel:
    """`model` as a `PeftModel` with A and B in their starting place."""
    if start in ("gaussian", "orthogonal", "eva", *_ON_WEIGHTS):
        config.init_lora_weights = start
    if start == "eva":
        from peft import EvaConfig

        config.eva_config = EvaConfig()
    weights = _dequantized(model) if start == "loftq" else {}
    tuned = wrapped(model, config, method=method)
    if start == "eva" and context.batches is not None:
        _start_eva(tuned, context.batches)
    if start == "loftq":
        _start_loftq(tuned, weights)
    if start in ("eva", "loftq"):
        # The saved matrices say everything; peft would compute the start again when it loads them.
        config.init_lora_weights, config.eva_config = True, None
    return tuned


def _start_eva(tuned: Any, batches: Callable[[], Iterator[Mapping[str, Tensor]]]) -> None:
    """A from the principal parts of each layer's inputs; ranks are shared out by explained variance."""
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    tuned.eval()
    rows = list(islice(batches(), EVA_BATCHES))
    try:
        initialize_lora_eva_weights(tuned, rows, prepare_layer_inputs_fn=_real_rows, show_progress_bar=False)
    except (RuntimeError, ValueError) as problem:
        # e.g. peft 0.21 cannot read the inputs of BERT's pooler, one row per text and not contiguous
        raise CapabilityError(
            f"method.init eva cannot be computed for these layers of {type(tuned.get_base_model()).__name__} "
            f"({problem}); choose method.target_modules: attention, or init: default"
        ) from problem


def _real_rows(layer_input: Any, mask: Tensor, layer: str) -> Tensor:
    """Inputs of one layer, (rows, width), those of padding left out where there is one per token of the input."""
    inputs: Tensor = layer_input[0] if isinstance(layer_input, tuple) else layer_input
    return inputs[mask] if inputs.shape[:-1] == mask.shape else inputs.flatten(0, -2)


def _dequantized(model: Any) -> dict[str, Tensor]:
    """The weights of the linear layers as the checkpoint has them, before quantization."""
    import torch

    from peftkit.methods.targets import linear_layers

    with torch.random.fork_rng():  # a new head would draw random numbers
        full = type(model).from_pretrained(model.name_or_path, config=_unquantized(model.config), dtype=torch.float32)
    return {name: full.get_submodule(name).weight.data for name in linear_layers(full)}


def _unquantized(config: Any) -> Any:
    plain = type(config).from_dict(config.to_dict())
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    return plain


def _start_loftq(tuned: Any, weights: Mapping[str, Tensor]) -> None:
    """B A becomes the best low-rank approximation of what quantization has taken from each weight.

    One step of the alternation in Li et al. 2023, arXiv:2310.08659, algorithm 1; the base keeps its storage.
    """
    import torch
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    adapter = tuned.active_adapter
    for name, layer in tuned.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.lora_A:
            continue
        stored = dequantize_module_weight(layer.get_base_layer()).float()
        original = weights[name].to(stored.device)
        lost = (original if original.shape == stored.shape else original.T) - stored
        u, s, v = torch.linalg.svd(lost / layer.scaling[adapter], full_matrices=False)
        rank = layer.r[adapter]
        root = s[:rank].sqrt()
        layer.lora_A[adapter].weight.data = root[:, None] * v[:rank]
        layer.lora_B[adapter].weight.data = u[:, :rank] * root
