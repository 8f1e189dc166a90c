"""Methods with state of their own between steps: an interrupted run ends in the bytes of one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from peftkit.recipe import Recipe
from peftkit.results import RANK_PREFIX, RunResult
from peftkit.training import RunOptions, resume, run

MakeRecipe = Callable[..., Recipe]
RunCut = Callable[[Recipe, Path, int], str]
QUIET = RunOptions(show_progress=False)

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore::UserWarning")]


def _weights(run_dir: Path) -> bytes:
    return next(run_dir.glob("*/*.safetensors")).read_bytes()


def _ranks(result: RunResult) -> list[tuple[int, dict[str, float]]]:
    points = [(point.step, dict(point.values)) for point in result.history]
    return [(step, values) for step, values in points if any(key.startswith(RANK_PREFIX) for key in values)]


@pytest.mark.parametrize("step", [4, 9])  # while AdaLoRA prunes, and after its last allocation
@pytest.mark.parametrize(
    "method",
    [
        "{name: adalora, target_rank: 2, interval: 1, warmup_share: 0.1, final_share: 0.4}",
        "{name: lora, init: pissa}",
        "{name: lora, init: corda}",
        "{name: lora, init: eva}",
        "{name: dora, dropout: 0.1}",
        "{name: prefix, reparameterisation: true}",
        "p_tuning",
        "{name: bottleneck, style: houlsby}",
        "bitfit",
        "{name: gradual_unfreezing, every: 2}",
        "[lora, layer_norm]",
    ],
)
def test_interrupted_run_resumes_to_the_same_bytes(
    make_recipe: MakeRecipe, tmp_path: Path, run_cut: RunCut, method: str, step: int
) -> None:
    recipe = make_recipe(f"method={method}")
    whole = run(recipe, tmp_path / "whole", options=QUIET)
    run_cut(recipe, tmp_path / "cut", step)
    resumed = resume(tmp_path / "cut", options=QUIET)
    assert _weights(tmp_path / "cut") == _weights(tmp_path / "whole")
    assert resumed.metrics == whole.metrics
    assert _ranks(resumed) == _ranks(whole)


def test_quantized_base_resumes_to_the_same_bytes(make_recipe: MakeRecipe, tmp_path: Path, run_cut: RunCut) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'peftkit[quantization]'")
    recipe = make_recipe("method={name: lora, init: loftq}", "quantization=nf4")
    run(recipe, tmp_path / "whole", options=QUIET)
    run_cut(recipe, tmp_path / "cut", 7)
    resume(tmp_path / "cut", options=QUIET)
    assert _weights(tmp_path / "cut") == _weights(tmp_path / "whole")
