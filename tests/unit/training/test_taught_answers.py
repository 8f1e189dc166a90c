"""Training answers that a teacher writes: which they are, and that none is written twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftkit.artifacts.cache import clear_entries
from peftkit.artifacts.places import answers_dir
from peftkit.errors import RecipeError
from peftkit.predictor import load
from peftkit.recipe import Recipe
from peftkit.training import RunOptions, run, taught_answers
from peftkit.training.prepare import load_rows
from peftkit.training.taught_answers import with_taught_answers
from peftkit.training.teacher import Teacher

Checkpoint = Callable[[str], Path]
QUIET = RunOptions(show_progress=False)
PROMPTS = [f"{word} {thing}:" for thing in ("film", "soup", "plot") for word in ("long", "dull", "lovely", "cold")]
ANSWERS = [f"the {prompt.split()[1][:-1]} was {prompt.split()[0]}" for prompt in PROMPTS]

pytestmark = pytest.mark.training


def _recipe(
    base: Path, folder: Path, *, columns: tuple[str, str] = ("prompt", "completion"), **sections: Any
) -> Recipe:
    rows = [dict(zip(columns, pair, strict=True)) for pair in zip(PROMPTS, ANSWERS, strict=True)]
    path = folder / f"{columns[0]}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    values = {
        "model": {"id": str(base), "max_length": 48},
        "task": {"name": "text_generation", "max_new_tokens": 6},
        "data": {"name": "files", "train": str(path)},
        "method": "lora",
        "training": {"epochs": 1, "batch_size": 4, "learning_rate": 0.01, "eval_batch_size": 5},
    }
    return Recipe.from_values(values | sections, origin="test")


@pytest.fixture(scope="module", params=["llama", "t5"])
def teacher(request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has seen the rows a few times."""
    folder = tmp_path_factory.mktemp(request.param)
    training = {"epochs": 10, "batch_size": 4, "learning_rate": 0.01}
    run(_recipe(checkpoint(request.param), folder, training=training), folder / "run", options=QUIET)
    return folder / "run"


def _taught(recipe: Recipe) -> tuple[list[str], tuple[str, ...]]:
    loaded, task = load_rows(recipe)
    after = with_taught_answers(recipe, loaded, task=task)
    return list(after.splits["train"]["completion"]), after.notes


def test_they_are_what_the_teacher_answers(
    teacher: Path, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = checkpoint(teacher.parent.name.rstrip("0"))
    options = {"teacher": str(teacher), "alpha": 0, "answers": "teacher"}
    recipe = _recipe(base, tmp_path, distillation=options)
    said = [answer["text"] for answer in load(teacher)(PROMPTS)]
    taught, notes = _taught(recipe)
    assert taught == [text or own for text, own in zip(said, ANSWERS, strict=True)]
    wrote = sum(map(bool, said))
    assert wrote > 6
    assert notes[-1].startswith(f"the teacher '{teacher}' wrote the answers of {wrote} of 12 training rows")

    monkeypatch.setattr(Teacher, "load", lambda *args: pytest.fail("the answers are there"))
    assert _taught(recipe)[0] == taught


def test_what_was_cut_off_is_written_on(
    teacher: Path, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = checkpoint(teacher.parent.name.rstrip("0"))
    options = {"teacher": str(teacher), "alpha": 0, "answers": "teacher"}
    recipe = _recipe(base, tmp_path, distillation=options)
    taught, _ = _taught(recipe)
    path = next(answers_dir().glob("*.jsonl"))
    whole = path.read_text("utf-8")
    lines = whole.splitlines(keepends=True)
    path.write_text("".join(lines[:7]) + lines[7][:9], "utf-8")
    asked: list[str] = []
    original = taught_answers._written

    def written(teacher: Teacher, missing: list[str], **options: Any) -> Any:
        asked.extend(missing)
        return original(teacher, missing, **options)

    monkeypatch.setattr(taught_answers, "_written", written)
    assert _taught(recipe)[0] == taught
    assert sorted(asked) == sorted(json.loads(line)[0] for line in lines[7:])
    assert sorted(path.read_text("utf-8").splitlines()) == sorted(whole.splitlines())
    clear_entries()
    assert not answers_dir().exists()


def test_a_student_with_another_tokenizer_learns_them(tiny_gpt2: Path, teacher: Path, tmp_path: Path) -> None:
    """And of another kind: the teacher is asked for nothing but its answers."""
    options = {"teacher": str(teacher), "alpha": 0, "answers": "teacher"}
    recipe = _recipe(tiny_gpt2, tmp_path, distillation=options)
    result = run(recipe, tmp_path / "student", options=QUIET)
    assert any("wrote the answers of" in note for note in result.data.notes)


def test_answers_and_predictions_together(teacher: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint(teacher.parent.name.rstrip("0"))
    training = {"epochs": 6, "batch_size": 4, "learning_rate": 0.02, "logging_steps": 1}
    recipe = _recipe(base, tmp_path, distillation={"teacher": str(teacher), "answers": "teacher"}, training=training)
    result = run(recipe, tmp_path / "student", options=QUIET)
    losses = [point.values["loss"] for point in result.history if "loss" in point.values]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_a_teacher_of_other_columns_is_refused(teacher: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    base = checkpoint(teacher.parent.name.rstrip("0"))
    options = {"teacher": str(teacher), "alpha": 0, "answers": "teacher"}
    task = {"name": "summarization", "max_new_tokens": 6}
    recipe = _recipe(base, tmp_path, columns=("document", "summary"), task=task, distillation=options)
    with pytest.raises(
        RecipeError, match=r"was trained on task 'text_generation', and the answers are wanted for 'summ"
    ):
        run(recipe, tmp_path / "student", options=QUIET)
