"""Optimizers of bitsandbytes: which run where, asked before anything is downloaded."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import Trainer, TrainingArguments

from peftkit.errors import CapabilityError
from peftkit.recipe import Optimizer, Recipe
from peftkit.training.environment import check_environment, describe_environment

MakeRecipe = Callable[..., Recipe]

NAMES = [name for part in get_args(Optimizer) for name in get_args(part)]
PAGED = [name for name in NAMES if name.startswith("paged")]
EIGHT_BIT = ["adamw_8bit", "lion_8bit", "ademamix_8bit"]
OF_BITSANDBYTES = [*EIGHT_BIT, "lion_32bit", "ademamix", *PAGED]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def optimizer_for(name: str, layer: torch.nn.Module, folder: Path) -> torch.optim.Optimizer:
    arguments = TrainingArguments(
        output_dir=str(folder), optim=name, learning_rate=0.01, use_cpu=True, report_to="none"
    )
    cls, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer: torch.optim.Optimizer = cls(layer.parameters(), **options)
    return optimizer


def steps(layer: torch.nn.Module, optimizer: torch.optim.Optimizer, *, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        random = torch.Generator().manual_seed(step)
        inputs = torch.randn(16, 128, generator=random)
        loss = (layer(inputs) - inputs[:, :64] / 2).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(128, 64)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PAGED])
def test_every_other_optimizer_learns_on_a_cpu(name: str, tmp_path: Path) -> None:
    weights = layer()
    losses = steps(weights, optimizer_for(name, weights, tmp_path), first=0, last=40)
    assert losses[-1] < (0.99 if name == "sgd" else 0.6) * losses[0]


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_state_has_8_bits_and_continues_bit_equal(name: str, tmp_path: Path) -> None:
    weights = layer()
    optimizer = optimizer_for(name, weights, tmp_path)
    steps(weights, optimizer, first=0, last=4)
    assert optimizer.state[weights.weight]["state1"].dtype == torch.uint8
    assert optimizer.state[weights.bias]["state1"].dtype == torch.float32, "tensors below 4096 values are left alone"
    stored = io.BytesIO()
    torch.save({"weights": weights.state_dict(), "optimizer": optimizer.state_dict()}, stored)
    steps(weights, optimizer, first=4, last=8)
    stored.seek(0)
    saved: dict[str, Any] = torch.load(stored, weights_only=True)
    again = torch.nn.Linear(128, 64)
    again.load_state_dict(saved["weights"])
    resumed = optimizer_for(name, again, tmp_path)
    resumed.load_state_dict(saved["optimizer"])
    steps(again, resumed, first=4, last=8)
    assert torch.equal(again.weight, weights.weight)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("paged_adamw_32bit", "adamw_torch"),
        ("paged_adamw_8bit", "adamw_8bit"),
        ("paged_lion_32bit", "lion_32bit"),
        ("paged_lion_8bit", "lion_8bit"),
        ("paged_ademamix_32bit", "ademamix"),
        ("paged_ademamix_8bit", "ademamix_8bit"),
    ],
)
def test_paged_optimizers_need_cuda(make_recipe: MakeRecipe, tmp_path: Path, name: str, instead: str) -> None:
    assert instead in NAMES
    with pytest.raises(CapabilityError) as refusal:
        check_environment(make_recipe(f"training.optimizer={name}"), tmp_path)
    assert str(refusal.value) == (
        f"training.optimizer '{name}' moves its state between GPU and main memory, but this machine has no CUDA GPU; "
        f"use {instead}"
    )


@pytest.mark.parametrize("name", NAMES)
def test_library_is_asked_for_where_it_is_needed(
    make_recipe: MakeRecipe, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(f"training.optimizer={name}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    if name not in OF_BITSANDBYTES:
        check_environment(recipe, tmp_path)
        return
    with pytest.raises(CapabilityError) as refusal:
        check_environment(recipe, tmp_path)
    assert str(refusal.value) == (
        f"training.optimizer '{name}' needs bitsandbytes, which is not installed; install it with  "
        "pip install 'peftkit[quantization]'  or use adamw_torch"
    )


@pytest.mark.parametrize("name", ["adamw_8bit", "ademamix"])
def test_optimizer_of_bitsandbytes_does_not_run_on_macs(
    make_recipe: MakeRecipe, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(CapabilityError, match="runs on CUDA GPUs and CPUs, not on mps; use adamw_torch"):
        check_environment(make_recipe(f"training.optimizer={name}"), tmp_path)


def test_quantizer_is_asked_whether_it_runs_here(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(CapabilityError, match="quantization 'nf4' runs on CUDA GPUs and CPUs, not on mps"):
        check_environment(make_recipe("quantization=nf4"), tmp_path)


def test_compute_type_and_library_version_are_recorded(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    from importlib.metadata import version

    environment = check_environment(make_recipe("quantization=nf4"), tmp_path)
    assert environment.compute_dtype == torch.float32
    described = describe_environment(environment)
    assert (described["compute_dtype"], described["bitsandbytes"]) == ("float32", version("bitsandbytes"))
    plain = describe_environment(check_environment(make_recipe(), tmp_path))
    assert "compute_dtype" not in plain
    assert "bitsandbytes" not in plain
