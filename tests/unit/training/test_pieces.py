"""Batches that do not fit into memory give the gradients that they would give whole, in every process alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftkit import training
from peftkit.errors import PeftkitError, RunError
from peftkit.multi_task import MultiTask
from peftkit.recipe import Recipe
from peftkit.training import RunOptions, resume, run
from peftkit.training.pieces import FEATURES, Features, Pieces

MakeRecipe = Callable[..., Recipe]
RunCut = Callable[[Recipe, Path, int], str]
QUIET = RunOptions(show_progress=False)
OUT_OF_MEMORY = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory"),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes"),
}


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Memory for 150 tokens forward, and for 70 backward, padding included; the sizes of what did not fit."""
    original, refused = training.tuned_model, []

    def tuned_model(*args: Any, **kwargs: Any) -> Any:
        base = original(*args, **kwargs)
        sizes = []

        def look(module: Any, ids: Any) -> None:
            sizes.append(ids[0].numel() if torch.is_grad_enabled() else 0)

        def block(module: Any, inputs: Any, output: Any) -> None:
            size = sizes[-1]
            if size > 150:
                refuse(size)
            if size > 70:
                # The last to get its gradient: others have theirs by then.
                (output[0] if isinstance(output, tuple) else output).register_hook(lambda gradient: refuse(size))

        def refuse(size: int) -> None:
            refused.append(size)
            raise torch.OutOfMemoryError("out of memory")

        base.model.get_input_embeddings().register_forward_pre_hook(look)
        next(part for name, part in base.model.named_modules() if name.endswith("layer.0")).register_forward_hook(block)
        return base

    monkeypatch.setattr(training, "tuned_model", tuned_model)
    return refused


@pytest.mark.training
def test_a_run_that_memory_is_too_small_for_gives_the_same_weights(
    make_recipe: MakeRecipe, still_bert: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    recipe = make_recipe(
        "training.optimizer=sgd",
        "training.learning_rate=0.5",
        "training.batch_size=12",
        "training.accumulation_steps=2",
        "training.max_steps=2",
        "training.warmup_steps=0",
        "training.micro_batch=auto",
        "regularizers=[{name: l2_sp, strength: 0.5}, {name: r_drop}]",
        model=still_bert,
    )
    whole = run(recipe, tmp_path / "whole", options=QUIET)
    assert whole.execution["micro_batch"] == "on: all batches fit into memory"
    refused = request.getfixturevalue("little_memory")
    pieces = run(recipe, tmp_path / "pieces", options=QUIET)
    assert max(refused) > 150 > min(refused)
    assert "4 batches were computed in pieces" in pieces.execution["micro_batch"]
    for one, other in zip(whole.history, pieces.history, strict=True):
        assert one.values.get("loss") == pytest.approx(other.values.get("loss"), abs=2e-4)  # rounded in the log
    first, second = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "pieces")
    )
    for name, wanted in first.items():
        assert torch.allclose(second[name], wanted, atol=2e-6), name


@pytest.mark.training
def test_a_resumed_run_cuts_the_same_batches(
    make_recipe: MakeRecipe, tmp_path: Path, run_cut: RunCut, little_memory: list[int]
) -> None:
    recipe = make_recipe("method.dropout=0.2", "training.micro_batch=auto", "training.epochs=1")
    whole = run(recipe, tmp_path / "whole", options=QUIET)
    run_cut(recipe, tmp_path / "cut", 4)
    little_memory.clear()
    assert resume(tmp_path / "cut", options=QUIET).execution["micro_batch"] == whole.execution["micro_batch"]
    assert little_memory == []
    one, other = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()


def batch_of(features: list[dict[str, Any]]) -> dict[str, Any]:
    return {"x": torch.tensor([feature["x"] for feature in features])}


def compute(problem: Exception | None, *, room: int) -> tuple[Pieces, torch.Tensor, torch.Tensor]:
    """The sum of squares of five rows beneath a gradient of one, with memory for so many rows."""
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    model.weight.grad = torch.ones(1, 2)
    pieces = Pieces(model, batch_of)
    features = [{"x": [float(row), 1.0]} for row in range(5)]

    def step(batch: Any, is_first: bool) -> torch.Tensor:
        loss = model(batch["x"]).square().sum()
        loss.backward()
        if problem is not None and len(batch["x"]) > room:
            raise problem
        return loss.detach()

    loss = pieces.compute({**batch_of(features), FEATURES: Features(features)}, step)
    return pieces, loss, model.weight.grad


@pytest.mark.parametrize(("device", "room"), [("gpu", 1), ("cpu", 3), ("gpu", 5)])
def test_gradients_are_those_of_the_whole_batch(device: str, room: int) -> None:
    pieces, loss, gradient = compute(OUT_OF_MEMORY[device], room=room)
    # sum of (row + 1)^2, and 2 * sum of (row + 1) * (row, 1), beside the ones that were there
    assert loss == 1 + 4 + 9 + 16 + 25
    assert gradient.tolist() == [[1 + 2 * (2 + 6 + 12 + 20), 1 + 2 * 15]]
    assert (pieces.limit is None) == (room == 5)
    assert pieces.cut == (room < 5)


def test_a_single_row_that_does_not_fit_and_other_errors_end_the_run() -> None:
    with pytest.raises(
        RunError, match=r"memory does not suffice for a single row of 2 tokens; lower model\.max_length"
    ):
        compute(OUT_OF_MEMORY["gpu"], room=0)
    with pytest.raises(RuntimeError, match="shapes"):
        compute(RuntimeError("shapes"), room=3)


CLASSIFIER: dict[str, Any] = {"task": "sequence_classification"}
UNFIT = {
    "less than a row": (CLASSIFIER, {"batch_tokens": 31}, "a row may have 32 tokens .* raise it to 32 at least"),
    "tokens for TRL": ({"task": "dpo"}, {"batch_tokens": 64}, "task 'dpo' is trained by TRL"),
    "tokens for pairs": (
        {"task": {"name": "sentence_embedding", "objective": "pairs"}},
        {"batch_tokens": 64},
        "a batch may have a single row, .* needs at least 2; use batch_size",
    ),
    "pieces for TRL": ({"task": "dpo"}, {"micro_batch": "auto"}, "task 'dpo' is trained by TRL"),
    "pieces of pairs": (
        {"task": {"name": "sentence_embedding", "objective": "pairs"}},
        {"micro_batch": "auto"},
        "parts of a batch do not add up to it: with task 'sentence_embedding'",
    ),
    "pieces of mixtures": (
        {**CLASSIFIER, "regularizers": ["mixup"]},
        {"micro_batch": "auto"},
        "'mixup' works on all of its rows together; use whole",
    ),
    "pieces of comparisons": (
        {**CLASSIFIER, "regularizers": ["supervised_contrastive"]},
        {"micro_batch": "auto"},
        "'supervised_contrastive' works on all of its rows together",
    ),
    "pieces of attacks": (
        {**CLASSIFIER, "regularizers": ["fgm"]},
        {"micro_batch": "auto"},
        "'fgm' works on all of its rows together",
    ),
}


@pytest.mark.parametrize(("sections", "options", "message"), UNFIT.values(), ids=UNFIT)
def test_recipes_whose_batches_cannot_be_cut_are_refused(
    sections: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    values = {"model": {"id": "x", "max_length": 32}, "data": {"name": "files", "train": "x.csv"}, "method": "lora"}
    with pytest.raises(PeftkitError, match=message):
        Recipe.from_values({**values, **sections, "training": options}, origin="test")


@pytest.mark.parametrize("options", [{"batch_tokens": 512}, {"micro_batch": "auto"}])
def test_tasks_that_train_together_keep_their_batches(options: dict[str, Any]) -> None:
    (key,) = options
    part = {"task": "sequence_classification", "data": {"name": "files", "train": "x.csv"}}
    values = {"model": "x", "method": "lora", "tasks": {"one": part, "two": part}, "training": options}
    with pytest.raises(PeftkitError, match=rf"training\.{key}.*tasks that train together"):
        MultiTask.from_values(values, origin="test")
