"""Gradual unfreezing: which weights move when, at which rate, and that a stopped run goes on in its stage."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from peftkit.errors import CapabilityError, InterruptedRunError
from peftkit.layers.depth import unfreezing_stages
from peftkit.layers.unfreezing import Unfreeze
from peftkit.methods import TuningContext, methods
from peftkit.models import skeleton
from peftkit.recipe import ModelSpec, Recipe
from peftkit.tasks import Head
from peftkit.training import RunOptions, resume, run
from peftkit.training.callbacks import ShowProgress
from peftkit.training.trainer import HookedTrainer

QUIET = RunOptions(show_progress=False)
HEAD, TOP, BOTTOM, EMBEDDINGS = ("bert.pooler.", "classifier."), ("layer.1.",), ("layer.0.",), ("embeddings.",)
Weights = dict[str, torch.Tensor]


def recipe_of(tiny_bert: Path, files: Mapping[str, Path], *settings: str) -> Recipe:
    """48 rows in 6 batches of 8, for 2 epochs; stages of the tiny BERT: head, block 1, block 0, embeddings."""
    text = f"""
        model: {{id: {tiny_bert}, max_length: 32}}
        task: sequence_classification
        data: {{name: files, train: {files["train"]}, validation: {files["validation"]}}}
        method: {{name: gradual_unfreezing}}
        training: {{epochs: 2, batch_size: 8, learning_rate: 0.001, scheduler: constant, warmup_steps: 0}}
    """
    return Recipe.from_text(text, settings=settings)


@pytest.fixture
def make_recipe(tiny_bert: Path, sentiment_files: dict[str, Path]) -> Callable[..., Recipe]:
    return lambda *settings: recipe_of(tiny_bert, sentiment_files, *settings)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, Weights]:
    """The weights after each step of the next run, by step; 0 holds those before the first."""
    record: dict[int, Weights] = {}

    def weights(model: Any) -> Weights:
        return {name: weight.detach().clone() for name, weight in model.named_parameters()}

    begin, end = ShowProgress.on_train_begin, ShowProgress.on_step_end

    def note_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        record[state.global_step] = weights(kwargs["model"])
        begin(self, args, state, control, **kwargs)

    def note_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        record[state.global_step] = weights(kwargs["model"])
        end(self, args, state, control, **kwargs)

    monkeypatch.setattr(ShowProgress, "on_train_begin", note_begin)
    monkeypatch.setattr(ShowProgress, "on_step_end", note_end)
    return record


def moved(seen: dict[int, Weights], step: int) -> set[str]:
    """Weights that the given step changed."""
    return {name for name, weight in seen[step].items() if not weight.equal(seen[step - 1][name])}


def of_parts(weights: Weights, *parts: str) -> set[str]:
    return {name for name in weights if any(part in name for part in parts)}


@pytest.mark.training
@pytest.mark.parametrize(
    ("settings", "first_steps"),
    [
        (("method.every=even",), (1, 4, 7, 10)),  # 12 steps by 4 stages
        (("method.every=2",), (1, 3, 5, 7)),
        (("method.every=epoch", "training.epochs=4"), (1, 7, 13, 19)),
        (("method.every=epoch", "training.epochs=4", "training.accumulation_steps=4"), (1, 3, 5, 7)),
    ],
)
def test_each_stage_begins_in_its_step_and_nothing_below_moves_before(
    make_recipe: Callable[..., Recipe],
    tmp_path: Path,
    seen: dict[int, Weights],
    settings: tuple[str, ...],
    first_steps: tuple[int, ...],
) -> None:
    result = run(make_recipe(*settings), tmp_path / "run", options=QUIET)
    assert result.model.trainable_parameters == result.model.total_parameters
    parts = (HEAD, TOP, BOTTOM, EMBEDDINGS)
    assert of_parts(seen[0], *sum(parts, ())) == set(seen[0])
    for step in range(1, max(seen) + 1):
        begun = [part for part, first in zip(parts, first_steps, strict=True) if first <= step]
        assert moved(seen, step) == of_parts(seen[0], *sum(begun, ())), step


@pytest.mark.training
def test_several_blocks_at_a_time(make_recipe: Callable[..., Recipe], tmp_path: Path, seen: dict[int, Weights]) -> None:
    run(make_recipe("method.blocks_per_stage=2", "method.every=5"), tmp_path / "run", options=QUIET)
    assert moved(seen, 5) == of_parts(seen[0], *HEAD)
    assert moved(seen, 6) == of_parts(seen[0], *HEAD, *TOP, *BOTTOM)
    assert moved(seen, 11) == set(seen[0])


@pytest.mark.training
@pytest.mark.parametrize("step", [2, 3, 5])  # within the first stage, at its end, within the second
def test_stopped_run_goes_on_in_its_stage(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    recipe = make_recipe("method.learning_rate_decay=0.5", "training.weight_decay=0.1", "training.epochs=2")
    whole = run(recipe, tmp_path / "whole", options=QUIET)
    original = ShowProgress.on_step_end

    def press(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(ShowProgress, "on_step_end", press)
        with pytest.raises(InterruptedRunError, match=f"stopped at step {step} of 12"):
            run(recipe, tmp_path / "cut", options=QUIET)
    resumed = resume(tmp_path / "cut", options=QUIET)
    left = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert left[0] == left[1]
    assert resumed.metrics == whole.metrics


@pytest.mark.training
def test_rates_reach_the_optimizer(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rate of each part: 0.001 times 0.5 to the power of its distance from the head."""
    rates: dict[str, float] = {}
    original = HookedTrainer.create_optimizer

    def note(self: Any, model: Any = None) -> torch.optim.Optimizer:
        optimizer = original(self, model)
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        rates.update({names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]})
        return optimizer

    monkeypatch.setattr(HookedTrainer, "create_optimizer", note)
    run(make_recipe("method.learning_rate_decay=0.5", "training.max_steps=4"), tmp_path / "run", options=QUIET)
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert rates.keys() == weights.keys()
    for distance, parts in enumerate((HEAD, TOP, BOTTOM, EMBEDDINGS)):
        assert {rates[name] for name in of_parts(weights, *parts)} == {0.001 * 0.5**distance}


@pytest.mark.training
def test_run_of_too_few_epochs_is_refused_before_weights_are_loaded(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(
        CapabilityError, match="has 4 stages here; at 6 steps each the last begins with step 19, but the run has 18"
    ):
        run(make_recipe("method.every=epoch", "training.epochs=3"), tmp_path / "run", options=QUIET)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("options", "total_steps", "problem"),
    [
        ({"every": 5}, 16, None),
        ({"every": 5}, 15, "at 5 steps each the last begins with step 16, but the run has 15: train longer"),
        ({"every": 5, "blocks_per_stage": 2}, 15, None),
        ({}, 4, None),
        ({}, 3, "has 4 stages here; at 1 steps each the last begins with step 4, but the run has 3"),
        ({"every": "epoch"}, 1, None),  # steps of an epoch are not known yet
    ],
)
def test_too_short_runs_are_refused_before_weights_are_loaded(
    tiny_bert: Path, options: dict[str, Any], total_steps: int, problem: str | None
) -> None:
    model = bare(tiny_bert, Head("AutoModelForSequenceClassification"))
    found = build(**options).problem(model, TuningContext("SEQ_CLS", ("classifier",), total_steps))
    assert found is None if problem is None else problem in str(found)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_bases_are_refused(tiny_bert: Path, bits: int) -> None:
    context = TuningContext("SEQ_CLS", ("classifier",), 100, base_bits=bits)
    model = bare(tiny_bert, Head("AutoModelForSequenceClassification"))
    for name in ("full", "gradual_unfreezing"):
        assert f"method '{name}' trains the base weights, which {context.base} stores as integers" in str(
            methods.build(name).problem(model, context)
        )


def test_stages_of_a_language_model_start_with_its_top_block(tiny_gpt2: Path, tiny_llama: Path) -> None:
    causal = Head("AutoModelForCausalLM", is_new=False)
    first, second, last = unfreezing_stages(bare(tiny_gpt2, causal), blocks_per_stage=1)
    assert {name.split(".")[1] for name in first} == {"ln_f", "h"}
    assert {name.split(".")[2] for name in first if ".h." in name} == {"1"}
    assert {name.split(".")[2] for name in second} == {"0"}
    assert last == ["transformer.wte.weight", "transformer.wpe.weight"]
    first, _, last = unfreezing_stages(bare(tiny_llama, causal), blocks_per_stage=1)
    assert {"lm_head.weight", "model.norm.weight"} < set(first)
    assert last == ["model.embed_tokens.weight"]


def test_stacks_of_an_encoder_decoder_are_unfrozen_side_by_side(tiny_t5: Path) -> None:
    model = bare(tiny_t5, Head("AutoModelForSeq2SeqLM", is_new=False))
    first, second, last = unfreezing_stages(model, blocks_per_stage=1)
    assert {name.partition(".layer.")[0] for name in first if ".block." in name} == {
        "encoder.block.1",
        "decoder.block.1",
    }
    assert {"encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"} < set(first)
    assert {name.partition(".layer.")[0] for name in second} == {"encoder.block.0", "decoder.block.0"}
    assert last == ["shared.weight"]
    assert sorted([*first, *second, *last]) == sorted(name for name, _ in model.named_parameters())


def test_callback_opens_the_stage_of_the_step_that_it_finds(tiny_bert: Path) -> None:
    model = bare(tiny_bert, Head("AutoModelForSequenceClassification"))
    callback = Unfreeze(blocks_per_stage=1, every=10)
    trainable = []
    for step in (0, 9, 10, 29, 500):
        callback.on_train_begin(None, SimpleNamespace(global_step=step, max_steps=1000), None, model=model)
        trainable.append(
            {name.removeprefix("bert.") for name, weight in model.named_parameters() if weight.requires_grad}
        )
    assert {name.split(".")[0] for name in trainable[0]} == {"pooler", "classifier"}
    assert trainable[0] == trainable[1]
    assert {name[:15] for name in trainable[2] - trainable[1]} == {"encoder.layer.1"}
    assert {name[:15] for name in trainable[3] - trainable[2]} == {"encoder.layer.0"}
    assert {name[:11] for name in trainable[4] - trainable[3]} == {"embeddings."}


@pytest.mark.parametrize("option", ["every=0", "every=weekly", "blocks_per_stage=0", "learning_rate_decay=0"])
def test_options_out_of_range_are_refused(option: str) -> None:
    key, value = option.split("=")
    with pytest.raises(ValidationError, match=key):
        build(**{key: int(value) if value.isdigit() else value})


def build(**options: Any) -> Any:
    return methods.build({"name": "gradual_unfreezing", **options})


def bare(folder: Path, head: Head) -> Any:
    return skeleton(ModelSpec(id=str(folder)), head).model
