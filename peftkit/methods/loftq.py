"""LoftQ: a start of LoRA that gives back what quantization has taken from the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from peftkit.errors import CapabilityError
from peftkit.methods.targets import linear_layers

if TYPE_CHECKING:
    from torch import Tensor


def original_weights(model: Any) -> dict[str, Tensor]:
    """The linear layers' weights (outputs, inputs) as the checkpoint has them, before quantization.

    Raises:
        CapabilityError: the checkpoint itself is quantized.
    """
    import torch

    from peftkit.layers.low_rank_start import oriented

    stored = type(model.config).from_pretrained(model.name_or_path)
    if hasattr(stored, "quantization_config"):
        raise CapabilityError(
            f"method.init loftq needs the weights as they were before quantization, but the checkpoint of "
            f"{type(model).__name__} holds quantized ones; use default"
        )
    plain = type(model.config).from_dict(model.config.to_dict())
    del plain.quantization_config
    with torch.random.fork_rng():  # a new head would draw random numbers
        full = type(model).from_pretrained(
            model.name_or_path, config=plain, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True
        )
    layers = {name: full.get_submodule(name) for name in linear_layers(full)}
    return {name: oriented(layer, layer.weight.data) for name, layer in layers.items()}


def make_up_for_quantization(tuned: Any, originals: Mapping[str, Tensor]) -> None:
    """B A becomes the best low-rank approximation of what quantization has taken from each weight.

    One step of the alternation in Li et al. 2023, arXiv:2310.08659, algorithm 1; the base keeps its storage.
    """
    from peft.utils.integrations import dequantize_module_weight

    from peftkit.layers.low_rank_start import principal_part, set_matrices, updated_layers

    adapter = tuned.active_adapter
    for name, layer in updated_layers(tuned):
        stored = dequantize_module_weight(layer.get_base_layer()).float()
        lost = originals[name].to(stored.device) - stored
        if not lost.any():  # the quantizer has left this layer out; A and B of zeros would never learn
            continue
        set_matrices(layer, adapter, principal_part(lost, layer.r[adapter], layer.scaling[adapter]))
