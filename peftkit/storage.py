"""How the base weights are held: their type, a quantizer of the recipe, or what a quantized checkpoint brings along."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from peftkit.artifacts import locate_tokenizer
from peftkit.errors import CapabilityError
from peftkit.quantization import Quantizer
from peftkit.quantization.bnb import keep_as_stored

if TYPE_CHECKING:
    from peftkit.recipe import ModelSpec


@dataclass(frozen=True)
class Storage:
    """How the base weights are held.

    Args:
        dtype: of weights that are not quantized.
        quantizer: how the linear weights are stored, or None.
        compute_dtype: type that quantized weights are multiplied in.
        keep: modules, besides heads, that the quantizer leaves as they are.
        device: where quantized weights are put, for they cannot be moved; None: the best device at hand.
    """

    dtype: torch.dtype = torch.float32
    quantizer: Quantizer | None = None
    compute_dtype: torch.dtype = torch.float32
    keep: tuple[str, ...] = ()
    device: str | None = None


@dataclass(frozen=True)
class StoredQuantization:
    """How the weights in a checkpoint's files are quantized.

    Args:
        method: transformers' name: gptq, awq, hqq, bitsandbytes, ...
        settings: the `quantization_config` in config.json.
    """

    method: str
    settings: Mapping[str, Any]

    @property
    def bits(self) -> int:
        """Bits per weight of a linear layer, rounded up to the 4 or 8 that tuning methods know."""
        settings = self.settings
        inner = settings.get("quant_config", {}).get("weight_quant_params", {})
        for holder, key in ((settings, "bits"), (settings, "nbits"), (settings, "w_bit"), (inner, "nbits")):
            if holder.get(key):
                return 4 if int(holder[key]) <= 4 else 8
        return 4 if settings.get("load_in_4bit") or "4" in self.method else 8


def find_device() -> str:
    """The best device at hand: cuda, mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def usable_device(name: str) -> str:
    """`name`, or the best device at hand where it is auto.

    Raises:
        CapabilityError: the device is not there.
    """
    if name == "auto":
        return find_device()
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as problem:
        raise CapabilityError(f"device {name!r} cannot be used here ({problem}); use auto or cpu") from problem
    return name


def compute_dtype(device: str) -> torch.dtype:
    """Type in which dequantized weights are multiplied: what the device computes without emulating it."""
    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def stored_quantization(spec: ModelSpec) -> StoredQuantization | None:
    """How the files of a checkpoint are quantized; None if they are not. Reads its configuration only."""
    folder = locate_tokenizer(spec.locator, revision=spec.revision).path
    settings = json.loads((folder / "config.json").read_text("utf-8")).get("quantization_config")
    return None if settings is None else StoredQuantization(settings.get("quant_method", "bitsandbytes"), settings)


def base_bits(spec: ModelSpec, storage: Storage) -> int:
    """Bits in which the base stores a weight of a linear layer: 32, 16, 8 or 4."""
    if storage.quantizer is not None:
        return storage.quantizer.bits
    stored = stored_quantization(spec)
    return stored.bits if stored is not None else 8 * storage.dtype.itemsize


_PACKAGES = {
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "awq": {"gptqmodel": "gptqmodel"},
    "hqq": {"hqq": "hqq"},
    "bitsandbytes": {"bitsandbytes": "'peftkit[quantization]'"},
}
"""Modules that read a kind of quantized checkpoint, and what to install for each."""


def check_readable(spec: ModelSpec, stored: StoredQuantization, *, device: str) -> None:
    """Ask before loading whether a quantized checkpoint can be loaded and tuned here.

    Raises:
        CapabilityError: it cannot; says what to install or what to use instead.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    packages = _PACKAGES.get(stored.method, {})
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    instead = "choose an unquantized base and  quantization: nf4"
    if absent:
        raise CapabilityError(
            f"the weights of '{spec.title}' are stored as {stored.method}, which needs {' and '.join(absent)}; "
            f"install it with  pip install {' '.join(packages[name] for name in absent)}  or {instead}"
        )
    try:
        reader = AutoHfQuantizer.from_config(dict(stored.settings), pre_quantized=True)
        reader.validate_environment(device_map={"": device})
    except (ImportError, RuntimeError, ValueError) as problem:
        reason = str(problem).strip().rstrip(".")
        raise CapabilityError(
            f"the weights of '{spec.title}' are stored as {stored.method}, which cannot be loaded here ({reason}); "
            f"{instead}"
        ) from problem
    if not reader.is_trainable:
        raise CapabilityError(
            f"the weights of '{spec.title}' are stored as {stored.method}, through which transformers passes no "
            f"gradients; {instead}"
        )


def quantizing_options(storage: Storage, *, new_modules: Sequence[str], output: str | None) -> dict[str, Any]:
    """What `from_pretrained` has to be told to quantize a checkpoint while it is loaded.

    Args:
        new_modules: modules that the checkpoint has no weights for.
        output: the output embedding, if there is one.
    """
    assert storage.quantizer is not None
    keep = [*new_modules, *storage.keep, *([output] if output else [])]
    config = storage.quantizer.config(compute_dtype=storage.compute_dtype, keep=keep)
    return {"quantization_config": config, "device_map": {"": storage.device or find_device()}}


def spare_new_modules(config: Any, new_modules: Sequence[str]) -> None:
    """Tell the configuration of a bitsandbytes checkpoint that modules without weights in it are not quantized."""
    settings = config.quantization_config
    settings["llm_int8_skip_modules"] = [*(settings.get("llm_int8_skip_modules") or ()), *new_modules]


def settle(model: nn.Module, storage: Storage) -> None:
    """Bring a model with quantized weights into the state that training needs, its norms in float32."""
    keep_as_stored(model)
    if storage.quantizer is not None:
        storage.quantizer.settle(model)
    for module in model.modules():
        if type(module).__name__.endswith("Norm"):
            module.float()


def parameter_count(weight: nn.Parameter) -> int:
    """Weights that a parameter stands for; 4-bit ones lie two in a byte."""
    shape: torch.Size = getattr(getattr(weight, "quant_state", None), "shape", weight.shape)
    return shape.numel()
