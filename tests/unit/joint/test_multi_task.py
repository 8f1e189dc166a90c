"""What a recipe of several tasks says, what it may not say, and what the command line makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftkit.cli.entry import main
from peftkit.errors import PeftkitError, RecipeError, RunError
from peftkit.joint.running import set_up
from peftkit.multi_task import MultiTask
from peftkit.recipe_files import read_recipe
from peftkit.training import RunOptions
from peftkit.training.environment import check_environment

QUIET = RunOptions(show_progress=False)
MakeJoint = Callable[..., MultiTask]


def test_resolved_recipe_reads_back_as_an_equal_one(joint: MakeJoint, tmp_path: Path) -> None:
    recipe = joint("mood", "tags", sampling={"name": "temperature", "temperature": 2}, adapters="separate")
    path = tmp_path / "again.yaml"
    path.write_text(recipe.to_yaml(), "utf-8")
    assert read_recipe(path) == recipe


def test_the_recipe_of_one_task_has_what_holds_for_all(joint: MakeJoint) -> None:
    recipe = joint("mood", "tags", seed=7, training={"best_metric": "tags/span_f1"})
    tags = recipe.recipe("tags")
    assert (tags.name, tags.seed, tags.task.name) == ("joint.tags", 7, "token_classification")
    assert (tags.model, tags.method) == (recipe.model, recipe.method)
    assert tags.training.best_metric == "span_f1"
    assert recipe.recipe("mood").training.best_metric is None


def test_sampling_may_be_a_name(joint: MakeJoint) -> None:
    assert joint("mood", sampling="equal") == joint("mood", sampling={"name": "equal"})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"tasks": {}}, r"tasks .*at least 1"),
        ({"tasks.new task": {"task": "causal_lm"}}, r"tasks.new task.data .*is required but absent"),
        (
            {"rename": "two words"},
            r"tasks.two words .*'two words' cannot name a folder; use other letters, digits, _ and -",
        ),
        ({"rename": "mean"}, r"tasks.mean .*'mean' names the mean of all tasks; use other"),
        ({"tasks.mood.method": "lora"}, r"tasks.mood.method .*unknown key"),
        ({"tasks.mood.weight": 0}, r"tasks.mood.weight .*more than 0"),
        (
            {"tasks.mood.loss": "mean_squared_error"},
            r"tasks.mood.loss .*of task 'mood': 'mean_squared_error' works with",
        ),
        (
            {"tasks.mood.metrics": ["accuracy", "accuracy"]},
            r"tasks.mood.metrics .*two metrics give the score 'accuracy'",
        ),
        (
            {"tasks.mood.task": "dpo"},
            r"tasks.mood.task .*'dpo' is trained by an engine of its own, .* recipe of its own",
        ),
        ({"sampling": "random"}, r"sampling .*'proportional', 'temperature' or 'equal', not 'random'"),
        ({"sampling": "temperature"}, r"sampling .*temperature belongs to  \{name: temperature, temperature: 2\}: say"),
        ({"sampling": {"name": "equal", "temperature": 2}}, r"sampling .*remove it, or the name 'equal'"),
        ({"sampling": {"name": "temperature", "temperature": 0.5}}, r"sampling.temperature .*at least 1"),
        ({"sampling": {"name": "equal", "limit": 9}}, r"sampling .*limit has no effect where all tasks are alike"),
        ({"adapters": "own"}, r"adapters .*'shared' or 'separate', not 'own'"),
        (
            {"adapters": "separate", "method": "full"},
            r"adapters .*'full' trains the base weights, so that nothing would",
        ),
        (
            {"method": "adalora"},
            r"method .*'adalora' changes what it trains on its way, .* choose another, such as lora",
        ),
        ({"method": "gradual_unfreezing"}, r"method .*'gradual_unfreezing' changes what it trains on its way"),
        ({"method": "full", "quantization": "nf4"}, r"quantization .*method 'full' trains the base weights"),
        ({"regularizers": ["r_drop"]}, r"regularizers .*unknown key"),
        ({"model": {"architecture": {"type": "bert"}, "tokenizer": {"type": "wordpiece"}}}, r"give its  id"),
        (
            {"training.best_metric": "accuracy"},
            r"training.best_metric .*'accuracy' is neither mean nor the metric of a",
        ),
        ({"training.best_metric": "moods/accuracy"}, r"of a task \(mood, tags\), such as mood/accuracy"),
        (
            {"training.best_metric": "mood/bleu"},
            r"training.best_metric .*of task 'mood': 'bleu' is not among the metrics",
        ),
    ],
)
def test_recipes_that_cannot_be_meant(
    joint_values: Callable[..., dict[str, Any]], tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    values = joint_values("mood", "tags")
    if name := changes.pop("rename", None):
        values["tasks"][name] = values["tasks"].pop("mood")
    for key, value in changes.items():
        *path, last = key.split(".")
        place = values
        for part in path:
            place = place[part]
        place[last] = value
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError, match=problem):
        read_recipe(path)


def without_validation(values: dict[str, Any]) -> None:
    del values["tasks"]["mood"]["data"]["validation"]


def with_error(values: dict[str, Any]) -> None:
    del values["tasks"]["blanks"]
    values["tasks"]["mood"]["metrics"] = ["accuracy"]
    values["tasks"]["likeness"]["metrics"] = ["mse"]


def with_stream(values: dict[str, Any]) -> None:
    file = values["tasks"]["blanks"]["data"]["train"]
    values["tasks"]["blanks"]["data"] = {"name": "text_stream", "train": file}
    values["training"]["max_steps"] = 2


def with_other_labels(values: dict[str, Any]) -> None:
    values["tasks"]["mood"]["task"] = {"name": "sequence_classification", "labels": ["good", "bad"]}


def with_heads_only(values: dict[str, Any]) -> None:
    del values["tasks"]["blanks"]
    values["method"] = "head_only"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without_validation, r"tasks.mood.data: gives no validation rows, and other tasks do; give all of them some"),
        (
            with_error,
            r"training.best_metric: the mean of scores .*: likeness mse \(lower\), mood accuracy \(higher\); name",
        ),
        (with_other_labels, r"task 'mood': the data cannot be used .*positive"),
        (
            with_heads_only,
            r"tasks 'likeness' and 'mood' have nothing to train together: .*or the method trains heads only",
        ),
        (with_stream, r"tasks.blanks.data: a stream of texts has no share among tasks"),
    ],
)
def test_tasks_that_cannot_be_trained_together(
    joint_values: Callable[..., dict[str, Any]], tmp_path: Path, change: Callable[[dict[str, Any]], None], problem: str
) -> None:
    values = joint_values("mood", "likeness", "blanks")
    change(values)
    recipe = MultiTask.from_text(yaml.safe_dump(values))
    with pytest.raises(PeftkitError, match=f"(?s){problem}"):
        set_up(recipe, check_environment(recipe.recipe("mood"), tmp_path), QUIET)


def test_eight_bits_are_not_shared(joint: MakeJoint, tmp_path: Path) -> None:
    recipe = joint("mood", "tags", quantization="int8")
    with pytest.raises(PeftkitError, match=r"cannot share weights of 8 bits, .* use  quantization: nf4"):
        set_up(recipe, check_environment(recipe.recipe("mood"), tmp_path), QUIET)


def test_ranks_that_depend_on_rows_are_not_shared(joint: MakeJoint, tmp_path: Path) -> None:
    recipe = joint("mood", "tags", method={"name": "lora", "init": "eva"})
    with pytest.raises(PeftkitError, match=r"cannot share .*lora_A.default.weight, which is \(\d+, 32\) .* separate"):
        set_up(recipe, check_environment(recipe.recipe("mood"), tmp_path), QUIET)


def test_a_translator_shares_no_weights_with_a_classifier(joint: MakeJoint, tmp_path: Path) -> None:
    recipe = joint("mood", "spans", model="t5", training={"best_metric": "mood/accuracy"})
    with pytest.raises(
        PeftkitError, match=r"T5ForSequenceClassification and T5For.* name the weights of the base diff"
    ):
        set_up(recipe, check_environment(recipe.recipe("mood"), tmp_path), QUIET)


def test_check_names_every_task(
    joint_values: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(joint_values("mood", "tags")))
    assert main(["check", str(path)]) == 0
    said = capsys.readouterr().out
    for words in (
        "joint.mood: sequence_classification",
        "joint.tags: token_classification",
        "rows    train 48",
        "train 7",
    ):
        assert words in said
    assert f"peftkit run {path}" in said


@pytest.mark.training
def test_command_line_runs_predicts_and_reports(
    joint_values: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = tmp_path / "two.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(joint_values("mood", "tags")))
    assert main(["run", str(path), "--run-dir", str(folder), "--set", "training.epochs=1"]) == 0
    said = capsys.readouterr()
    assert "joint: mood, tags with lora on" in said.err
    for words in ("accuracy", "span F1", "mean", "14.3", str(folder / "tasks" / "mood"), "predict"):
        assert words in said.out, words
    assert main(["predict", str(folder / "tasks" / "mood"), "a lovely film"]) == 0
    assert "lovely" in capsys.readouterr().out
    assert main(["predict", str(folder), "a lovely film"]) == RunError.exit_code
    assert f"name the folder of one: {folder / 'tasks' / 'mood'}, " in capsys.readouterr().err.replace("\n", "")
    page = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_bytes() == page
    assert main(["run", "--resume", str(folder)]) == RunError.exit_code
    assert "is finished already" in capsys.readouterr().err
    assert main(["run", str(path), "--run-dir", str(folder)]) == RunError.exit_code
    assert "is not empty" in capsys.readouterr().err
