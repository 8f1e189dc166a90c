"""TRL's trainers behind peftkit's hooks: an interrupted run ends in the bytes of one that was not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from contracts.task_cases import TaskCase
from contracts.task_cases.dpo import CASES as DPO
from contracts.task_cases.grpo import CASES as GRPO
from contracts.task_cases.kto import CASES as KTO
from contracts.task_cases.orpo import CASE as ORPO
from contracts.task_cases.reward_model import CASES as REWARD

from peftkit.errors import RunError
from peftkit.recipe import Recipe
from peftkit.training import RunOptions, resume, run

QUIET = RunOptions(show_progress=False)
RunCut = Callable[[Recipe, Path, int], str]

pytestmark = pytest.mark.training


@pytest.mark.parametrize("batching", ["random", "group_by_length"])
@pytest.mark.parametrize("case", [DPO[0], KTO[0], ORPO, REWARD[0]], ids=lambda case: case.name)
def test_interrupted_run_resumes_to_the_same_bytes(
    checkpoint: Callable[[str], Path], tmp_path: Path, run_cut: RunCut, case: TaskCase, batching: str
) -> None:
    """Two epochs of three steps, cut in the second."""
    recipe = case.build(checkpoint(case.model), tmp_path, epochs=2, batching=batching)
    whole = run(recipe, tmp_path / "whole", options=QUIET)
    run_cut(recipe, tmp_path / "cut", 4)
    resumed = resume(tmp_path / "cut", options=QUIET)
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "cut" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert resumed.metrics == whole.metrics


def test_answers_are_drawn_anew_after_an_interruption(
    checkpoint: Callable[[str], Path], tmp_path: Path, run_cut: RunCut
) -> None:
    """The order of prompts and the random state go on where they stood, in the second epoch too."""
    recipe = GRPO[0].build(checkpoint("llama"), tmp_path, evaluate_every=2, epochs=2)
    whole = run(recipe, tmp_path / "whole", options=QUIET)
    run_cut(recipe, tmp_path / "cut", 6)
    resumed = resume(tmp_path / "cut", options=QUIET)
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "cut" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert resumed.metrics == whole.metrics


@pytest.mark.parametrize("method", ["full", "prefix", "bottleneck"])
def test_other_methods_train_on_preferences(checkpoint: Callable[[str], Path], tmp_path: Path, method: str) -> None:
    """The better answers gain on the training rows."""
    case = replace(DPO[0], validation=DPO[0].train, recipe={"method": method})
    result = run(case.build(checkpoint("llama"), tmp_path, epochs=6), tmp_path / "run", options=QUIET)
    assert result.metrics["validation"]["win_rate"] > 0.85


def test_quantized_base(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    case = replace(DPO[0], validation=DPO[0].train, recipe={"quantization": "nf4"})
    result = run(case.build(checkpoint("llama"), tmp_path, epochs=6), tmp_path / "run", options=QUIET)
    assert result.metrics["validation"]["win_rate"] > 0.85


def test_loss_that_is_no_number_names_the_rows(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    recipe = DPO[0].build(checkpoint("llama"), tmp_path, learning_rate=1e30, optimizer="sgd", max_grad_norm=0)
    with pytest.raises(
        RunError, match=r"the loss became nan at step \d, on this batch: train row \d+ \(.*train.jsonl:\d+"
    ):
        run(recipe, tmp_path / "run", options=QUIET)


def test_rewards_are_learnt(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    case = replace(GRPO[0], validation=GRPO[0].train)
    recipe = case.build(checkpoint("llama"), tmp_path, epochs=12, batch_size=6, score_before=True, learning_rate=0.003)
    split = run(recipe, tmp_path / "run", options=QUIET).splits["validation"]
    assert split.before is not None
    assert split.metrics["mean_reward"] > split.before["mean_reward"] + 0.1
