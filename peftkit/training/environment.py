"""Can this run start here? Asked before anything is downloaded."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from peftkit.errors import CapabilityError, RecipeError, RunError
from peftkit.models import compute_dtype, find_device
from peftkit.recipe import Recipe

Precision = Literal["fp32", "bf16", "fp16"]

_MINIMUM_FREE_BYTES = 500 * 2**20
_RECORDED = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy")
_UNPAGED = {
    "paged_adamw_32bit": "adamw_torch",
    "paged_adamw_8bit": "adamw_8bit",
    "paged_lion_32bit": "lion_32bit",
    "paged_lion_8bit": "lion_8bit",
    "paged_ademamix_32bit": "ademamix",
    "paged_ademamix_8bit": "ademamix_8bit",
}
_OF_BITSANDBYTES = frozenset(_UNPAGED) | frozenset(_UNPAGED.values()) - {"adamw_torch"}


@dataclass(frozen=True)
class Environment:
    """What a run computes on.

    Args:
        device: cuda, mps or cpu.
        precision: arithmetic of the forward and backward pass.
        weight_dtype: type in which the base weights are held.
        compute_dtype: type in which quantized weights are multiplied; None: the base is not quantized.
    """

    device: str
    precision: Precision
    weight_dtype: torch.dtype
    compute_dtype: torch.dtype | None = None


def check_environment(recipe: Recipe, run_dir: Path) -> Environment:
    """Device, precision, disk and trackers for a run.

    Raises:
        CapabilityError: the recipe asks for what this machine or its libraries cannot do.
        RecipeError: the parts of the recipe contradict each other.
        RunError: there is no room for the run folder.
    """
    _check_trackers(recipe)
    _check_engine(recipe)
    _check_disk(run_dir)
    device = find_device()
    _check_quantization(recipe, device)
    _check_optimizer(recipe, device)
    multiplied_in = None if recipe.quantization is None else compute_dtype(device)
    return Environment(device, _precision(recipe, device), _weight_dtype(recipe), multiplied_in)


def _check_quantization(recipe: Recipe, device: str) -> None:
    if recipe.quantization is not None and (problem := recipe.quantization.problem(device)):
        raise CapabilityError(problem)


def _check_optimizer(recipe: Recipe, device: str) -> None:
    name = recipe.training.optimizer
    if name not in _OF_BITSANDBYTES:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise CapabilityError(
            f"training.optimizer {name!r} needs bitsandbytes, which is not installed; "
            "install it with  pip install 'peftkit[quantization]'  or use adamw_torch"
        )
    if name in _UNPAGED and device != "cuda":
        raise CapabilityError(
            f"training.optimizer {name!r} moves its state between GPU and main memory, but this machine has no CUDA "
            f"GPU; use {_UNPAGED[name]}"
        )
    if device not in ("cuda", "cpu"):
        raise CapabilityError(
            f"training.optimizer {name!r} runs on CUDA GPUs and CPUs, not on {device}; use adamw_torch"
        )


def describe_environment(environment: Environment) -> dict[str, str]:
    """Machine and library versions, for the record."""
    described = {
        "device": environment.device,
        "precision": environment.precision,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "cpu_cores": str(os.cpu_count()),
        "torch_threads": str(torch.get_num_threads()),
    }
    if environment.device == "cuda":
        described["gpu"] = torch.cuda.get_device_name()
    libraries = list(_RECORDED)
    if environment.compute_dtype is not None:
        described["compute_dtype"] = str(environment.compute_dtype).removeprefix("torch.")
        libraries += ["bitsandbytes"] if importlib.util.find_spec("bitsandbytes") else []
    return described | {name: version(name) for name in libraries}


def _check_trackers(recipe: Recipe) -> None:
    absent = [name for name in recipe.training.report_to if importlib.util.find_spec(name) is None]
    if absent:
        raise CapabilityError(
            f"training.report_to names {absent[0]!r}, which is not installed; "
            f"install it with  pip install 'peftkit[{absent[0]}]'  or remove it from the recipe"
        )


def _check_engine(recipe: Recipe) -> None:
    if recipe.task.engine is not None and importlib.util.find_spec("trl") is None:
        raise CapabilityError(
            f"task {recipe.task.name!r} trains with TRL, which is not installed; "
            "install it with  pip install 'peftkit[preference]'"
        )


def _check_disk(run_dir: Path) -> None:
    parent = next(folder for folder in [run_dir, *run_dir.absolute().parents] if folder.is_dir())
    if not os.access(parent, os.W_OK):
        raise RunError(f"the run folder '{run_dir}' cannot be written; choose another with --run-dir")
    free = shutil.disk_usage(parent).free
    if free < _MINIMUM_FREE_BYTES:
        raise RunError(
            f"only {free / 2**20:.0f} MiB are free where '{run_dir}' would be, at least "
            f"{_MINIMUM_FREE_BYTES / 2**20:.0f} MiB are needed; free some or choose another place with --run-dir"
        )


def _precision(recipe: Recipe, device: str) -> Precision:
    asked = recipe.training.precision
    if device != "cuda":
        if asked == "fp16":
            raise CapabilityError(
                f"training.precision fp16 needs a CUDA GPU, this machine has {device}; use auto, fp32 or bf16"
            )
        return "bf16" if asked == "bf16" else "fp32"
    if asked == "auto":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if asked == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise CapabilityError(
            f"training.precision bf16 is not computed by {torch.cuda.get_device_name()}; use fp16 or auto"
        )
    return asked


def _weight_dtype(recipe: Recipe) -> torch.dtype:
    asked = "float32" if recipe.model.dtype == "auto" else recipe.model.dtype
    if asked != "float32" and recipe.method.trains_base_weights:
        raise RecipeError(
            f"model.dtype {asked} stores the base weights in 16 bits, and method {recipe.method.name!r} trains them: "
            "small updates would round to nothing; use model.dtype: float32"
        )
    dtype: torch.dtype = getattr(torch, asked)
    return dtype
