"""Tasks trained together on tiny checkpoints: what each step computes, and what is left of it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from application import Application
from safetensors.torch import load_file

from peftkit.errors import InterruptedRunError, RunError
from peftkit.joint.running import resume_tasks, run_tasks, set_up
from peftkit.joint.trainer import joint_trainer
from peftkit.multi_task import MultiTask
from peftkit.predictor import load
from peftkit.results import HistoryPoint, MultiTaskResult, RunResult
from peftkit.training import RunOptions, run
from peftkit.training.callbacks import ShowProgress
from peftkit.training.environment import check_environment

QUIET = RunOptions(show_progress=False)
MakeJoint = Callable[..., MultiTask]
TEXTS = ["a joyous film", "a dull mess of a movie"]
ADAPTER = Path("adapter/adapter_model.safetensors")

pytestmark = pytest.mark.training


def learnt(points: tuple[HistoryPoint, ...]) -> list[tuple[int, dict[str, float]]]:
    return [(point.step, dict(point.values)) for point in points]


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("mood", {}),
        ("mood", {"training": {"batch_size": 7, "accumulation_steps": 3, "batching": "group_by_length"}}),
        ("mood", {"method": "full", "training": {"batch_size": 5}}),
        ("tags", {"adapters": "separate", "training": {"batch_size": 3, "accumulation_steps": 2}}),
        ("likeness", {"method": "bitfit", "model": "distilbert", "training": {"batch_size": 2, "max_steps": 5}}),
        ("blanks", {"training": {"batch_size": 4}}),
    ],
)
def test_one_task_is_the_run_that_it_is_alone(
    joint: MakeJoint, tmp_path: Path, task: str, changes: dict[str, Any]
) -> None:
    """Among them a task that draws anew in each epoch."""
    changes["training"] = {"epochs": 3, "learning_rate": 0.003, "logging_steps": 1, **changes.get("training", {})}
    recipe = joint(task, **changes)
    run_tasks(recipe, tmp_path / "joint", options=QUIET)
    alone = run(recipe.recipe(task), tmp_path / "alone", options=QUIET)
    found = RunResult.read(tmp_path / "joint" / "tasks" / task)
    assert found.best_step == alone.best_step
    assert found.metrics == alone.metrics
    assert [step for step, _ in learnt(found.history)] == [step for step, _ in learnt(alone.history)]
    for (_, values), (_, wanted) in zip(learnt(found.history), learnt(alone.history), strict=True):
        assert values == pytest.approx(wanted, abs=1e-6)
    file = ADAPTER if changes.get("method") != "full" else Path("model/model.safetensors")
    weights, wanted_weights = (load_file(tmp_path / place / file) for place in (f"joint/tasks/{task}", "alone"))
    for name, weight in wanted_weights.items():
        assert torch.allclose(weights[name], weight, atol=1e-6), name


def by_hand(setups: Any, batches: list[tuple[str, dict[str, Any]]]) -> torch.Tensor:
    """Loss of a step by transformers' own heads: of each task the mean over its items, weighed by its micro-batches."""
    total = torch.zeros(())
    for task in {task for task, _ in batches}:
        own = [batch for name, batch in batches if name == task]
        summed, items = torch.zeros(()), 0
        for batch in own:
            count = int((batch["labels"] != -100).sum())
            inputs = {name: value for name, value in batch.items() if name not in ("row", "joint_task")}
            summed = summed + setups[task].model(**inputs).loss * count
            items += count
        total = total + len(own) / len(batches) * summed / items
    return total


@pytest.mark.parametrize("adapters", ["shared", "separate"])
def test_a_step_has_the_gradients_of_the_sum_over_tasks(joint: MakeJoint, tmp_path: Path, adapters: str) -> None:
    recipe = joint(
        "mood",
        "tags",
        "likeness",
        adapters=adapters,
        sampling={"name": "temperature", "temperature": 4},
        training={"batch_size": 3, "accumulation_steps": 10, "max_steps": 1, "max_grad_norm": 0, "learning_rate": 1e-3},
    )
    setups, _ = set_up(recipe, check_environment(recipe.recipe("mood"), tmp_path), QUIET)
    trainer = joint_trainer(recipe, setups, tmp_path / "checkpoints", callbacks=[])
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    names = list(setups)
    batches = [trainer.data_collator([trainer.batches[place]]) for place in range(10)]
    tasks = [names[int(batch["joint_task"])] for batch in batches]
    assert len(set(tasks)) == 3
    assert len({tasks.count(name) for name in names}) > 1
    trainer.model.train()
    loss = by_hand(setups, list(zip(tasks, batches, strict=True)))
    loss.backward()
    wanted = {name: weight.grad.clone() for name, weight in trainer.model.named_parameters() if weight.grad is not None}
    assert len(wanted) == sum(weight.requires_grad for weight in trainer.model.parameters())
    trainer.model.zero_grad()

    found: dict[str, torch.Tensor] = {}
    optimizer = trainer.create_optimizer()
    optimizer.register_step_pre_hook(
        lambda *_: found.update(
            {name: weight.grad.clone() for name, weight in trainer.model.named_parameters() if weight.grad is not None}
        )
    )
    trainer.train()
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, atol=1e-6, rtol=1e-4), name
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_shared_adapters_are_equal_and_separate_ones_differ(joint: MakeJoint, tmp_path: Path) -> None:
    for adapters in ("shared", "separate"):
        recipe = joint("mood", "likeness", "tags", adapters=adapters)
        run_tasks(recipe, tmp_path / adapters, options=QUIET)
        mood, likeness, tags = (
            load_file(tmp_path / adapters / "tasks" / task / ADAPTER) for task in ("mood", "likeness", "tags")
        )
        updates = [name for name in tags if ".lora_B." in name]
        assert len(updates) == 12  # six linear layers in each of two blocks; tags have no pooler
        for name in updates:
            assert torch.equal(mood[name], likeness[name]) == (adapters == "shared")
            assert torch.equal(mood[name], tags[name]) == (adapters == "shared")
            assert mood[name].abs().max() > 0
        head = next(name for name in mood if name.endswith("classifier.weight"))
        assert mood[head].shape != likeness[head].shape


def test_frozen_weights_are_in_memory_once(joint: MakeJoint, tmp_path: Path) -> None:
    for adapters, trained_twice in (("shared", False), ("separate", True)):
        recipe = joint("mood", "tags", adapters=adapters)
        setups, _ = set_up(recipe, check_environment(recipe.recipe("mood"), tmp_path), QUIET)
        mood, tags = (dict(setups[task].model.named_parameters()) for task in ("mood", "tags"))
        common = [name for name in tags if name in mood and ".classifier." not in name]
        assert len(common) > 30
        for name in common:
            own = trained_twice and mood[name].requires_grad
            assert (mood[name] is not tags[name]) == own, name


def press_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Press Ctrl-C while a step is computed."""
    original = ShowProgress.on_step_end

    def press(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(ShowProgress, "on_step_end", press)


@pytest.mark.parametrize("changes", [{}, {"adapters": "separate"}, {"method": "full"}])
def test_a_resumed_run_is_the_run_without_a_stop(
    joint: MakeJoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    training = {"epochs": 3, "batch_size": 4, "accumulation_steps": 2, "learning_rate": 0.003, "logging_steps": 1}
    recipe = joint("mood", "tags", "likeness", sampling="equal", training=training, **changes)
    whole = run_tasks(recipe, tmp_path / "whole", options=QUIET)
    with monkeypatch.context() as patched:
        press_at(patched, 11)
        with pytest.raises(InterruptedRunError, match=r"stopped at step 11 of 24"):
            run_tasks(recipe, tmp_path / "cut", options=QUIET)
    resumed = resume_tasks(tmp_path / "cut", options=QUIET)
    assert (resumed.means, resumed.best_step) == (whole.means, whole.best_step)
    for task in recipe.tasks:
        one, other = (tmp_path / place / "tasks" / task for place in ("whole", "cut"))
        assert learnt(RunResult.read(one).history) == learnt(RunResult.read(other).history)
        for weights in one.rglob("*.safetensors"):
            assert weights.read_bytes() == (other / weights.relative_to(one)).read_bytes()
    with pytest.raises(RunError, match=r"is finished already"):
        resume_tasks(tmp_path / "cut", options=QUIET)


def test_every_task_is_loaded_by_itself_in_a_new_process(
    joint: MakeJoint, tmp_path: Path, application: Application
) -> None:
    run_tasks(joint("mood", "tags", "likeness"), tmp_path / "run", options=QUIET)
    (tmp_path / "elsewhere").mkdir()
    for task in ("mood", "likeness", "tags"):  # each without the others
        shutil.copytree(tmp_path / "run" / "tasks" / task, tmp_path / "elsewhere" / task)
        inputs: list[Any] = [["Anna", "saw", "Oslo"]] if task == "tags" else TEXTS
        assert application(tmp_path / "elsewhere" / task, inputs) == load(tmp_path / "run" / "tasks" / task)(inputs)
    with pytest.raises(RunError, match=r"holds several tasks; name the folder of one: .*tasks/likeness, .*tasks/mood"):
        load(tmp_path / "run")


def test_scores_are_those_of_single_runs_and_their_mean(joint: MakeJoint, tmp_path: Path) -> None:
    recipe = joint("mood", "tags", "likeness", training={"epochs": 1, "batch_size": 4, "score_before": True})
    result = run_tasks(recipe, tmp_path / "run", options=QUIET)
    assert MultiTaskResult.read(tmp_path / "run") == result
    runs = {task.name: RunResult.read(tmp_path / "run" / task.folder) for task in result.tasks}
    scores = {"mood": "accuracy", "tags": "span_f1", "likeness": "pearson"}
    values = [runs[task].splits["validation"].metrics[metric] for task, metric in scores.items()]
    assert result.means == {"validation": pytest.approx(sum(values) / 3)}
    for task in result.tasks:
        assert task.metric == scores[task.name]
        record = runs[task.name].splits["validation"]
        assert task.metrics == {"validation": dict(record.metrics)}
        assert record.intervals[task.metric].low <= record.metrics[task.metric] <= record.intervals[task.metric].high
        assert record.before.keys() == record.metrics.keys()
        assert record.worst
        assert "trained together with" in runs[task.name].warnings[0]
        assert (tmp_path / "run" / task.folder / "report.html").is_file()
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    for task in result.tasks:
        assert f'id="task-{task.name}"' in page
        assert f'href="{task.folder}/report.html"' in page
        assert f"{task.metrics['validation'][task.metric]:.4f}" in page
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_metric_of_one_task_can_choose_the_weights(joint: MakeJoint, tmp_path: Path) -> None:
    training = {"epochs": 3, "batch_size": 4, "learning_rate": 0.01, "best_metric": "mood/f1_macro"}
    result = run_tasks(joint("mood", "likeness", training=training), tmp_path / "run", options=QUIET)
    mood = RunResult.read(tmp_path / "run" / "tasks" / "mood")
    evaluated = {p.step: p.values["validation_f1_macro"] for p in mood.history if "validation_f1_macro" in p.values}
    assert len(evaluated) == 3
    assert evaluated[result.best_step] == max(evaluated.values()) == mood.metrics["validation"]["f1_macro"]
    assert (mood.best_metric, result.best_metric) == ("validation_f1_macro", "mood/f1_macro")


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization": "nf4"},
        {"method": {"name": "lora", "init": "corda"}},
        {"method": {"name": "lora", "init": "eva"}, "adapters": "separate"},
        {"method": {"name": "lora", "learning_rate_ratio": 8}, "model": "roberta"},
        {"method": "p_tuning", "adapters": "separate"},
        {"method": "bottleneck", "training": {"gradient_checkpointing": True, "precision": "bf16"}},
        {"training": {"early_stopping_patience": 1, "data_workers": 1, "report_to": ["tensorboard"]}},
    ],
)
def test_other_ways_to_tune(joint: MakeJoint, tmp_path: Path, changes: dict[str, Any]) -> None:
    """The run itself checks that what is saved gives the outputs of what was trained."""
    changes["training"] = {"epochs": 2, "batch_size": 4, "learning_rate": 0.001, **changes.get("training", {})}
    result = run_tasks(joint("mood", "likeness", **changes), tmp_path / "run", options=QUIET)
    losses = {}
    for task in result.tasks:
        history = RunResult.read(tmp_path / "run" / task.folder).history
        losses[task.name] = [point.values["loss"] for point in history if "loss" in point.values]
        assert set(load(tmp_path / "run" / task.folder)(["a joyous film"])[0]) & {"label", "value"}
    assert sum(values[-1] for values in losses.values()) < sum(values[0] for values in losses.values())


def test_language_models_share_a_decoder(joint: MakeJoint, tmp_path: Path) -> None:
    """One continues texts with the head of the base, the other gets a new head for classes."""
    result = run_tasks(
        joint("texts", "mood", model="gpt2", training={"epochs": 1, "batch_size": 4, "best_metric": "mood/accuracy"}),
        tmp_path / "run",
        options=QUIET,
    )
    assert {task.name: task.metric for task in result.tasks} == {"mood": "accuracy", "texts": "perplexity"}
    mood, texts = (load_file(tmp_path / "run" / "tasks" / task / ADAPTER) for task in ("mood", "texts"))
    updates = [name for name in texts if ".lora_B." in name]
    assert updates
    assert all(torch.equal(mood[name], texts[name]) for name in updates)
    assert load(tmp_path / "run" / "tasks" / "mood")(TEXTS)[0]["label"] in ("positive", "negative")
