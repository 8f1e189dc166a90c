"""Runs with regularizers that were interrupted end in the bytes of runs that were not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftkit.errors import InterruptedRunError
from peftkit.recipe import Recipe
from peftkit.training import RunOptions, resume, run
from peftkit.training.callbacks import ShowProgress

MakeRecipe = Callable[..., Recipe]
QUIET = RunOptions(show_progress=False)

pytestmark = pytest.mark.training


def _cut(recipe: Recipe, folder: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ShowProgress.on_step_end

    def press(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(ShowProgress, "on_step_end", press)
        with pytest.raises(InterruptedRunError):
            run(recipe, folder, options=QUIET)


@pytest.mark.parametrize("step", [4, 9])  # before the average of swa begins, and after
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(
    "parts",
    [
        ("l2_sp", "mixout", {"name": "ema", "decay": 0.8}),
        ({"name": "swa", "start_share": 0.5, "every": 2}, "pgd", "mixup"),
        ("freelb", "neftune", "ema"),
        ({"name": "smart", "momentum": 0.5}, "r_drop"),
    ],
    ids=lambda parts: "-".join(part if isinstance(part, str) else part["name"] for part in parts),
)
def test_interrupted_run_resumes_to_the_same_bytes(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: Any, method: str, step: int
) -> None:
    recipe = make_recipe(*parts, method=method, epochs=2, accumulation_steps=1, evaluate_every=4)
    whole = run(recipe, tmp_path / "whole", options=QUIET)
    _cut(recipe, tmp_path / "cut", step, monkeypatch)
    resumed = resume(tmp_path / "cut", options=QUIET)
    saved = [next((tmp_path / name).glob("*/*.safetensors")).read_bytes() for name in ("cut", "whole")]
    assert saved[0] == saved[1]
    assert resumed.metrics == whole.metrics
