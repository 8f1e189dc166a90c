"""What a machine can do is asked before anything is downloaded."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from peftkit.errors import CapabilityError, RunError
from peftkit.recipe import Recipe
from peftkit.training.environment import Environment, check_environment, describe_environment

MakeRecipe = Callable[..., Recipe]


def test_auto_is_float32_without_a_gpu(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    expected = Environment("cpu", "fp32", torch.float32)
    assert check_environment(make_recipe(), tmp_path / "not" / "there" / "yet") == expected


@pytest.mark.parametrize(("computes_bf16", "precision"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu_is_what_it_computes(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computes_bf16: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: computes_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    assert check_environment(make_recipe(), tmp_path).precision == precision
    if not computes_bf16:
        with pytest.raises(CapabilityError, match="bf16 is not computed by Old GPU; use fp16 or auto"):
            check_environment(make_recipe("training.precision=bf16"), tmp_path)


def test_fp16_without_a_gpu_is_refused_because_the_engine_would_ignore_it(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(CapabilityError, match="fp16 needs a CUDA GPU, this machine has cpu"):
        check_environment(make_recipe("training.precision=fp16"), tmp_path)


def test_full_disk_is_refused(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")  # stands for shutil's own named tuple
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 41 * 2**20))
    with pytest.raises(RunError, match=r"only 41 MiB are free where .*runs/x' would be, at least 500 MiB are needed"):
        check_environment(make_recipe(), tmp_path / "runs" / "x")


def test_description_names_versions(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    described = describe_environment(check_environment(make_recipe(), tmp_path))
    assert described["torch"] == torch.__version__.partition("+")[0] or described["torch"] == torch.__version__
    assert {"python", "peft", "transformers", "cpu_cores", "torch_threads", "device"} <= set(described)
