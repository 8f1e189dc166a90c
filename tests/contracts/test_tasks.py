"""What holds for every task: gradients add up, a new process predicts the same, and batches do not change answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from application import Application
from contracts.task_cases import TaskCase, all_cases
from safetensors.torch import load_file

from peftkit.artifacts import locate_tokenizer
from peftkit.models import load_tokenizer
from peftkit.predictor import load
from peftkit.tasks import tasks
from peftkit.tasks.columns import cell_lengths
from peftkit.training import RunOptions, run
from peftkit.training.prepare import load_rows

CASES = all_cases()
QUIET = RunOptions(show_progress=False)
DROPOUTS = ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout", "dropout_rate")

every_case = pytest.mark.parametrize("case", CASES, ids=[f"{place}-{case.name}" for place, case in enumerate(CASES)])


def test_every_task_has_a_case() -> None:
    assert {case.task["name"] for case in CASES} == set(tasks.names())


@pytest.mark.training
@every_case
def test_micro_batches_add_up_to_one_batch(case: TaskCase, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """One step of plain gradient descent on 8 rows: whole, and as micro-batches of 3, 3 and 2."""
    if not case.accumulates:
        pytest.skip("the loss of this task compares the rows of a batch with each other")
    still = without_dropout(checkpoint(case.model), tmp_path / "model")
    plain = {"optimizer": "sgd", "learning_rate": 0.5, "max_grad_norm": 0, "epochs": 1, "warmup_steps": 0}
    losses = {}
    for name, batches in (("one", {"batch_size": 8}), ("three", {"batch_size": 3, "accumulation_steps": 3})):
        recipe = first_rows(case, 8).build(still, tmp_path, **plain, **batches)
        losses[name] = run(recipe, tmp_path / name, options=QUIET).history[0].values["loss"]
    one, three = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "three"))
    assert losses["three"] == pytest.approx(losses["one"], abs=1e-4)  # the engine rounds what it logs
    for name, expected in one.items():
        # fp32 sums in another order: a few ulps of the largest weight
        assert torch.allclose(three[name], expected, atol=5e-6), name


@pytest.mark.training
@every_case
def test_a_new_process_predicts_identically(
    case: TaskCase, checkpoint: Callable[[str], Path], tmp_path: Path, application: Application
) -> None:
    run(case.build(checkpoint(case.model), tmp_path), tmp_path / "run", options=QUIET)
    if not case.inputs:
        return
    predict = load(tmp_path / "run")
    together = predict(list(case.inputs))
    assert application(tmp_path / "run", list(case.inputs)) == json.loads(json.dumps(together))
    apart = [predict([given])[0] for given in case.inputs]
    assert_alike(apart, together)


@every_case
def test_rows_are_cut_to_the_length_where_they_are_longer(
    case: TaskCase, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """What `Task.cut_columns` promises: short rows come out as without a limit, the others are as long as allowed."""
    recipe = case.build(checkpoint(case.model), tmp_path)
    loaded, task = load_rows(recipe)
    tokenizer = load_tokenizer(locate_tokenizer(recipe.model.locator))
    task.prepare_tokenizer(tokenizer)
    rows, limit = loaded.splits["train"], 12
    cut = task.encode(rows, tokenizer, limit)
    if task.cut_columns:
        wanted = np.minimum(cell_lengths(task.encode(rows, tokenizer, 512), task.cut_columns), limit)
        assert cell_lengths(cut, task.cut_columns).tolist() == wanted.tolist()
    again = task.encode(rows, tokenizer, limit)
    assert again.to_dict() == cut.to_dict(), "kept features have to be those that would be made anew"


def first_rows(case: TaskCase, count: int) -> TaskCase:
    from dataclasses import replace

    return replace(case, train=case.train[:count])


def without_dropout(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    for name in DROPOUTS:
        if name in config:
            config[name] = 0.0
    config["classifier_dropout"] = 0.0  # that of LLaMA's heads is 0.1 where nothing is said
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def assert_alike(first: Any, second: Any) -> None:
    """Equal but for the rounding of numbers."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_alike(first[key], second[key])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for one, two in zip(first, second, strict=True):
            assert_alike(one, two)
    elif isinstance(first, float):
        assert first == pytest.approx(second, abs=1e-5, rel=1e-6)
    else:
        assert first == second
