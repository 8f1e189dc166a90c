"""Distillation: the papers' formulas, runs with teachers of every kind, and teachers that are refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from application import Application
from safetensors.torch import load_file

from peftkit.distillation import HiddenStates
from peftkit.predictor import load
from peftkit.recipe import Recipe
from peftkit.training import RunOptions, resume, run
from peftkit.training.distillation import LayerComparison, class_distance, flag_distance, number_distance

Checkpoint = Callable[[str], Path]
MakeStudent = Callable[..., Recipe]
QUIET = RunOptions(show_progress=False)
LABELS = ["negative", "positive"]


def kl(first: Sequence[float], second: Sequence[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(first, second, strict=True))


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


STUDENT = [[1.0, -0.5, 0.2], [0.3, 0.1, -2.0]]
TEACHER = [[2.0, 0.5, -1.0], [-0.7, 1.1, 0.4]]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_predictions_are_compared_as_hinton_writes(temperature: float) -> None:
    expected = sum(
        temperature**2 * kl(softmax(theirs, temperature), softmax(ours, temperature))
        for ours, theirs in zip(STUDENT, TEACHER, strict=True)
    )
    found = class_distance(torch.tensor(STUDENT), torch.tensor(TEACHER), temperature)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_flags_are_compared_as_classes_there_or_not() -> None:
    expected = sum(
        9 * kl(softmax([theirs, 0.0], 3.0), softmax([ours, 0.0], 3.0))
        for row in zip(STUDENT, TEACHER, strict=True)
        for ours, theirs in zip(*row, strict=True)
    )
    found = flag_distance(torch.tensor(STUDENT).flatten(), torch.tensor(TEACHER).flatten(), 3.0)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_numbers_are_compared_by_squares() -> None:
    found = number_distance(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.5], [1.0]]), None)
    assert found.item() == pytest.approx(1.5**2 + 2.0**2)


def test_gradients_of_predictions_keep_their_size_at_high_temperatures() -> None:
    """Section 2.1 of the paper: with zero-mean logits it tends to (student - teacher) / classes."""
    student = torch.tensor([[0.3, -0.1, -0.2]], requires_grad=True)
    teacher = torch.tensor([[-0.4, 0.5, -0.1]])
    class_distance(student, teacher, 200.0).backward()
    assert student.grad is not None
    assert torch.allclose(student.grad, (student - teacher).detach() / 3, atol=1e-3)


def _models(checkpoint: Checkpoint, *, width: int) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(checkpoint("bert"), attention_probs_dropout_prob=0.0)
    torch.manual_seed(0)
    teacher = AutoModelForSequenceClassification.from_config(config).eval()
    config = AutoConfig.from_pretrained(checkpoint("bert"), num_hidden_layers=1, hidden_size=width)
    return AutoModelForSequenceClassification.from_config(config).eval(), teacher


@pytest.mark.parametrize("width", [32, 16])
@pytest.mark.parametrize("loss", ["cosine", "mse"])
@pytest.mark.parametrize(("layers", "pairs"), [(None, [(1, 2)]), ({0: 0, 1: 1}, [(0, 0), (1, 1)])])
def test_layers_are_compared_as_in_the_papers(
    checkpoint: Checkpoint, layers: dict[int, int] | None, pairs: list[tuple[int, int]], loss: str, width: int
) -> None:
    """The states are those that transformers gives; padding does not count."""
    student, teacher = _models(checkpoint, width=width)
    comparison = LayerComparison(HiddenStates(loss=loss, weight=3.0, layers=layers), student, teacher)
    ids = torch.randint(5, 60, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    states = []
    for model, watched in ((student, comparison.student), (teacher, comparison.teacher)):
        with watched.watching():
            states.append(model(ids, mask, output_hidden_states=True).hidden_states)
    expected = 0.0
    for ours, theirs in pairs:
        for row, column in mask.nonzero().tolist():
            one, two = states[0][ours][row, column], states[1][theirs][row, column]
            one = one @ comparison.projection.weight.T if width != 32 else one
            cosine = (one @ two / (one.norm() * two.norm())).item()
            expected += 1 - cosine if loss == "cosine" else sum((one - two).tolist()[i] ** 2 for i in range(32)) / 32
    assert comparison.distance({"attention_mask": mask}).item() == pytest.approx(3 * expected, rel=1e-5)


def _still(model: Path, folder: Path, **changes: Any) -> Path:
    """The same checkpoint without dropout."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    changes = {"attention_probs_dropout_prob": 0.0, "attn_pdrop": 0.0, "attention_dropout": 0.0, **changes}
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_the_first_loss_of_a_run_is_that_of_the_formula(
    make_student: MakeStudent, tiny_bert: Path, teacher: Path, tmp_path: Path, sentiment_rows: Any
) -> None:
    """All 48 rows in one batch, at a learning rate that changes nothing: what is saved is what was computed."""
    base = _still(tiny_bert, tmp_path / "still")
    training = {"batch_size": 48, "learning_rate": 1e-20}
    options = {"teacher": str(teacher), "alpha": 0.7, "temperature": 3.0}
    result = run(make_student(base, training, distillation=options), tmp_path / "run", options=QUIET)
    rows = sentiment_rows["train"]
    ours, theirs = (load(folder).logits([row["text"] for row in rows]) for folder in (tmp_path / "run", teacher))
    own = sum(-math.log(softmax(o, 1)[LABELS.index(r["label"])]) for o, r in zip(ours.tolist(), rows, strict=True))
    apart = sum(kl(softmax(t, 3), softmax(o, 3)) for o, t in zip(ours.tolist(), theirs.tolist(), strict=True))
    assert result.history[0].values["loss"] == pytest.approx((0.3 * own + 0.7 * 9 * apart) / 48, abs=1e-4)  # as logged


HIDDEN = {"loss": "mse"}
TASKS: dict[str, dict[str, Any]] = {
    "bert": {"task": {"name": "sequence_classification", "labels": LABELS}},
    "gpt2": {"task": {"name": "causal_lm", "pack": False}},
    "llama": {
        "task": {"name": "text_generation", "max_new_tokens": 4},
        "columns": {"prompt": "label", "completion": "text"},
    },
    "roberta": {"task": {"name": "masked_lm"}},
    "t5": {"task": {"name": "sequence_classification", "labels": LABELS}},
}


def _sections(kind: str, files: dict[str, Path]) -> dict[str, Any]:
    data: dict[str, Any] = {"name": "files"} | {split: str(path) for split, path in files.items()}
    if "columns" in TASKS[kind]:
        data["columns"] = TASKS[kind]["columns"]
    return {"task": TASKS[kind]["task"], "data": data}


@pytest.mark.training
@pytest.mark.parametrize(
    ("kind", "hidden"), [("bert", HIDDEN), ("gpt2", HIDDEN), ("llama", HIDDEN), ("roberta", HIDDEN), ("t5", None)]
)
def test_micro_batches_add_up_to_one_batch(
    make_student: MakeStudent,
    checkpoint: Checkpoint,
    sentiment_files: dict[str, Path],
    tmp_path: Path,
    kind: str,
    hidden: Any,
) -> None:
    """One step of plain gradient descent on 8 rows: whole, and as micro-batches of 3, 3 and 2."""
    base = _still(checkpoint(kind), tmp_path / "still", dropout_rate=0.0, classifier_dropout=0.0)
    sections = _sections(kind, sentiment_files)
    sections["data"] = sections["data"] | {"train": f"{sentiment_files['train']}#8"}
    longer = {"epochs": 10, "learning_rate": 0.03}
    del sections["data"]["validation"]  # which would choose weights that have hardly been trained
    run(make_student(checkpoint(kind), longer, **sections), tmp_path / "teacher", options=QUIET)
    options = {"teacher": str(tmp_path / "teacher"), "hidden_states": hidden}
    plain = {"optimizer": "sgd", "learning_rate": 0.5, "max_grad_norm": 0, "warmup_steps": 0}
    losses = {}
    for name, batches in (("one", {"batch_size": 8}), ("three", {"batch_size": 3, "accumulation_steps": 3})):
        recipe = make_student(base, plain | batches, distillation=options, **sections)
        losses[name] = run(recipe, tmp_path / name, options=QUIET).history[0].values["loss"]
    one, three = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "three"))
    assert losses["three"] == pytest.approx(losses["one"], abs=2e-4, rel=1e-5)  # the engine rounds what it logs
    for name, expected in one.items():
        assert torch.allclose(three[name], expected, atol=1e-5), name


@pytest.mark.training
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("method", "regularizers", "training"),
    [
        ("full", ["r_drop", "ema"], {}),
        ("prefix", [], {}),
        ("prompt", ["fgm"], {}),
        ({"name": "bottleneck", "width": 8}, ["freelb"], {}),
        ("ia3", ["neftune"], {"gradient_checkpointing": True}),
        ("lora", ["smart"], {"precision": "bf16", "dtype": "bfloat16"}),
        ("bitfit", [], {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_method_learns_from_a_teacher(
    make_student: MakeStudent,
    tiny_bert: Path,
    teacher: Path,
    tmp_path: Path,
    method: Any,
    regularizers: Any,
    training: Any,
) -> None:
    """Labels count nothing, so that whatever makes predictions and layers more alike comes from the teacher."""
    options = {"teacher": str(teacher), "alpha": 1.0, "hidden_states": {"layers": {1: 1, 2: 2}, "weight": 0.5}}
    training = {"epochs": 4, **training}
    model = {"dtype": training.pop("dtype", "auto")}
    sections = {"model": model, "method": method, "regularizers": regularizers, "distillation": options}
    recipe = make_student(tiny_bert, training, **sections)
    result = run(recipe, tmp_path / "run", options=QUIET)
    losses = [point.values["loss"] for point in result.history if "loss" in point.values]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])


@pytest.mark.training
def test_a_student_of_half_the_layers_and_width_comes_near_to_its_teacher(
    make_student: MakeStudent, tiny_bert: Path, teacher: Path, tmp_path: Path, application: Application
) -> None:
    """And answers the same in a new process; the teacher is not saved with it."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config = AutoConfig.from_pretrained(tiny_bert)
    config.hidden_size, config.intermediate_size = 16, 32
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(tmp_path / "narrow")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "narrow")
    sections = {"model": {"layers": [1]}, "method": "full"}
    options = {"teacher": str(teacher), "alpha": 1.0, "hidden_states": {"loss": "mse"}}
    result = run(
        make_student(tmp_path / "narrow", {"epochs": 6}, distillation=options, **sections),
        tmp_path / "run",
        options=QUIET,
    )
    losses = [point.values["loss"] for point in result.history if "loss" in point.values]
    assert sum(losses[-6:]) < 0.6 * sum(losses[:6])
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {name.split(".")[3] for name in saved if ".layer." in name} == {"0"}
    assert not [name for name in saved if "teacher" in name or "projection" in name]
    texts = ["a lovely film", "rude"]
    assert application(tmp_path / "run", texts) == load(tmp_path / "run")(texts)


@pytest.mark.training
@pytest.mark.parametrize("step", [4, 9])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    make_student: MakeStudent, tiny_bert: Path, tmp_path: Path, teacher: Path, run_cut: Any, step: int
) -> None:
    """With a projection that is learnt beside the student."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    config = AutoConfig.from_pretrained(tiny_bert)
    config.hidden_size = 16
    AutoModel.from_config(config).save_pretrained(tmp_path / "narrow")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "narrow")
    options = {"teacher": str(teacher), "hidden_states": {"loss": "mse"}}
    recipe = make_student(tmp_path / "narrow", {"epochs": 2, "evaluate_every": 4}, distillation=options)
    whole = run(recipe, tmp_path / "whole", options=QUIET)
    run_cut(recipe, tmp_path / "cut", step)
    resumed = resume(tmp_path / "cut", options=QUIET)
    saved = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert saved[0] == saved[1]
    assert resumed.metrics == whole.metrics


@pytest.mark.training
def test_a_plain_model_folder_teaches_as_the_run_does(
    make_student: MakeStudent, tiny_bert: Path, teacher: Path, tmp_path: Path
) -> None:
    options = {"alpha": 1.0, "temperature": 4.0}
    saved = []
    for name, folder in (("run", teacher), ("model", teacher / "model")):
        recipe = make_student(tiny_bert, distillation={"teacher": str(folder), **options})
        run(recipe, tmp_path / name, options=QUIET)
        saved.append((tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes())
    assert saved[0] == saved[1]


@pytest.mark.training
def test_a_teacher_draws_nothing_from_the_run(
    make_student: MakeStudent, tiny_bert: Path, teacher: Path, tmp_path: Path
) -> None:
    """A share too small to matter leaves the run as it was, dropout included."""
    losses = []
    for name, options in (("without", None), ("with", {"teacher": str(teacher), "alpha": 1e-12})):
        result = run(make_student(tiny_bert, distillation=options), tmp_path / name, options=QUIET)
        losses.append([point.values["loss"] for point in result.history if "loss" in point.values])
    assert losses[0] == losses[1]
