"""Teachers that cannot teach: every refusal names the key, the value and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftkit.errors import CapabilityError, PeftkitError, RecipeError, RunError
from peftkit.recipe import Recipe
from peftkit.training import RunOptions, check, run

Checkpoint = Callable[[str], Path]
MakeStudent = Callable[..., Recipe]
QUIET = RunOptions(show_progress=False)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"distillation": {"alpha": 0.5}}, r"distillation\.teacher.*(missing|required)"),
        ({"distillation": {"teacher": "x", "alpha": 1.5}}, r"distillation\.alpha.*1\.5"),
        ({"distillation": {"teacher": "x", "temperature": 0}}, r"distillation\.temperature.*0"),
        ({"distillation": {"teacher": "x", "temprature": 3}}, r"distillation\.temprature.*did you mean 'temperature'"),
        (
            {"distillation": {"teacher": "x", "alpha": 0}},
            "alpha is 0, so that nothing is learnt from the teacher; raise it, or give hidden_states",
        ),
        ({"distillation": {"teacher": "x", "hidden_states": {"loss": "l1"}}}, r"hidden_states\.loss.*l1"),
        (
            {"distillation": {"teacher": "x", "hidden_states": {"layers": {-1: 2}}}},
            r"distillation\.hidden_states\.layers.*-1",
        ),
        (
            {
                "task": {"name": "sequence_classification", "problem_type": "regression"},
                "distillation": {"teacher": "x", "temperature": 2},
            },
            r"distillation\.temperature.*are numbers, which have no temperature; remove it",
        ),
        (
            {"distillation": {"teacher": "x"}, "regularizers": ["mixup"]},
            "the teacher does not see the mixtures of rows that 'mixup' makes",
        ),
        (
            {"task": "dpo", "distillation": {"teacher": "x"}},
            "task 'dpo' compares something else than predictions of classes or numbers",
        ),
        (
            {"task": {"name": "token_classification", "crf": True}, "distillation": {"teacher": "x"}},
            "task 'token_classification' compares something else than predictions",
        ),
        (
            {"distillation": {"teacher": "x", "answers": "teacher"}},
            "a teacher writes answers to the rows of text_generation, .* not of task 'sequence_classification'",
        ),
    ],
)
def test_what_no_recipe_can_say(make_student: MakeStudent, tiny_bert: Path, sections: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_student(tiny_bert, **sections)


def _changed(model: Path, folder: Path, **config: Any) -> Path:
    """A copy of a model folder with other values in its configuration."""
    shutil.copytree(model, folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    return folder


def assert_refused(recipe: Recipe, message: str, *, kind: type[PeftkitError] = RecipeError) -> None:
    with pytest.raises(kind, match=message):
        check(recipe, options=QUIET)


SORTS = {
    "nowhere": (RunError, r"'.*nowhere' holds no finished run \(no run.json\)"),
    "swapped": (
        RecipeError,
        r"has the labels negative, positive, and this task has positive, negative; give them in its",
    ),
    "renamed": (
        RecipeError,
        r"labels negative, positive, and this task has bad, good; name a teacher that has the same",
    ),
    "regression": (
        RecipeError,
        r"trained on task 'sequence_classification' .* classes\), and this one is .* numbers\)",
    ),
    "masked_lm": (RecipeError, r"\(AutoModelForSequenceClassification, classes\), and this one is 'masked_lm'"),
}


@pytest.mark.parametrize("sort", SORTS)
def test_teachers_of_something_else(
    make_student: MakeStudent, tiny_bert: Path, teacher: Path, tmp_path: Path, sort: str
) -> None:
    tasks: dict[str, Any] = {
        "swapped": {"name": "sequence_classification", "labels": ["positive", "negative"]},
        "renamed": {"name": "sequence_classification", "labels": {"negative": "bad", "positive": "good"}},
        "regression": {"name": "sequence_classification", "problem_type": "regression"},
        "masked_lm": {"name": "masked_lm"},
    }
    sections = {"task": tasks[sort]} if sort in tasks else {}
    if sort == "nowhere":
        teacher = tmp_path / "nowhere"
        teacher.mkdir()
    kind, message = SORTS[sort]
    assert_refused(make_student(tiny_bert, distillation={"teacher": str(teacher)}, **sections), message, kind=kind)


def test_teachers_that_are_nowhere(make_student: MakeStudent, tiny_bert: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "no_run"
    recipe = make_student(tiny_bert, distillation={"teacher": str(nowhere)})
    with pytest.raises(PeftkitError, match=rf"distillation\.teacher: '{nowhere}' is no folder of a run, and no model"):
        check(recipe)


def test_models_without_a_trained_head(make_student: MakeStudent, tiny_bert: Path, tmp_path: Path) -> None:
    message = r"distillation.teacher: '.*' was not trained for task 'sequence_classification' \(it lacks "
    assert_refused(make_student(tiny_bert, distillation={"teacher": str(tiny_bert)}), message, kind=CapabilityError)
    nameless = _changed(tiny_bert, tmp_path / "nameless", architectures=None)
    assert_refused(make_student(tiny_bert, distillation={"teacher": str(nameless)}), message, kind=CapabilityError)


def test_models_whose_labels_have_no_names(
    make_student: MakeStudent, tiny_bert: Path, teacher: Path, tmp_path: Path
) -> None:
    names = {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    model = _changed(teacher / "model", tmp_path / "unnamed", **names)
    assert_refused(
        make_student(tiny_bert, distillation={"teacher": str(model)}), "has the labels LABEL_0, LABEL_1, and this"
    )


def test_teachers_that_read_otherwise(
    make_student: MakeStudent, checkpoint: Checkpoint, teacher: Path, tmp_path: Path
) -> None:
    student = make_student(checkpoint("roberta"), distillation={"teacher": str(teacher)})
    assert_refused(
        student, r"has \d+ tokens and the student \d+, and token 0 is '\[PAD\]' there and '<s>' here; name a teacher"
    )
    cased = shutil.copytree(checkpoint("bert"), tmp_path / "cased")
    values = json.loads((cased / "tokenizer_config.json").read_text())
    (cased / "tokenizer_config.json").write_text(json.dumps(values | {"do_lower_case": False}))
    assert_refused(
        make_student(cased, distillation={"teacher": str(teacher)}),
        r"reads the training texts otherwise than .* \(its input_ids differ\)",
    )


def test_teachers_that_read_less(make_student: MakeStudent, tiny_bert: Path, teacher: Path, tmp_path: Path) -> None:
    longer = _changed(tiny_bert, tmp_path / "longer", max_position_embeddings=256)
    recipe = make_student(longer, model={"max_length": 100}, distillation={"teacher": str(teacher)})
    assert_refused(recipe, "model.max_length is 100, and the teacher '.*' reads at most 64 tokens; lower it to 64")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({3: 1}, "hidden_states.layers: the student has no layer 3; it has 2, counted from 1"),
        ({1: 5}, "hidden_states.layers: the teacher has no layer 5; it has 2, counted from 1"),
        ({}, "hidden_states.layers is empty; name pairs of layers, or remove it"),
    ],
)
def test_layers_that_are_not_there(
    make_student: MakeStudent, tiny_bert: Path, teacher: Path, layers: dict[int, int], message: str
) -> None:
    options = {"teacher": str(teacher), "hidden_states": {"layers": layers}}
    assert_refused(make_student(tiny_bert, distillation=options), message)


def test_depths_that_do_not_divide(make_student: MakeStudent, tiny_bert: Path, teacher: Path, tmp_path: Path) -> None:
    deep = _changed(tiny_bert, tmp_path / "deep", num_hidden_layers=3)
    message = r"the student has 3 layers and the teacher 2, .* e.g.  distillation.hidden_states.layers: \{3: 2\}"
    assert_refused(make_student(deep, distillation={"teacher": str(teacher), "hidden_states": {}}), message)


@pytest.mark.training
def test_hidden_states_of_two_stacks(make_student: MakeStudent, checkpoint: Checkpoint, tmp_path: Path) -> None:
    run(make_student(checkpoint("t5")), tmp_path / "teacher", options=QUIET)
    options = {"teacher": str(tmp_path / "teacher"), "hidden_states": {}}
    message = r"T5ForSequenceClassification is no single stack of layers \(2 stacks\); remove it"
    assert_refused(make_student(checkpoint("t5"), distillation=options), message, kind=CapabilityError)


def test_a_run_does_not_replace_its_teacher(make_student: MakeStudent, tiny_bert: Path, teacher: Path) -> None:
    with pytest.raises(RunError, match=r"distillation.teacher lies in '.*', which this run replaces"):
        run(
            make_student(tiny_bert, distillation={"teacher": str(teacher)}), teacher, options=RunOptions(overwrite=True)
        )
    assert (teacher / "run.json").is_file()


@pytest.mark.training
def test_a_loss_of_several_parts(make_student: MakeStudent, tiny_bert: Path, tmp_path: Path) -> None:
    texts = "\n".join(json.dumps({"text": f"A film. Text {place} was good. The soup is cold."}) for place in range(8))
    (tmp_path / "texts.jsonl").write_text(texts)
    data = {"name": "files", "train": str(tmp_path / "texts.jsonl")}
    sections = {"task": {"name": "masked_lm_nsp"}, "data": data, "method": "full"}
    recipe = make_student(tiny_bert, distillation={"teacher": str(tiny_bert)}, **sections)
    with pytest.raises(RecipeError, match="the loss of task 'masked_lm_nsp' has several parts"):
        run(recipe, tmp_path / "run", options=QUIET)
