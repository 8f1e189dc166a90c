"""A finished run in an application: loaded as it was trained, and merged into the full-precision base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit import load
from peftkit.errors import CapabilityError
from peftkit.layers.blocks import block_lists
from peftkit.methods import TuningContext
from peftkit.models import load_model, save_weights, storage_of, to_float32_masters
from peftkit.recipe import Recipe
from peftkit.results import (
    PART_SEPARATOR,
    ArtifactRecord,
    CostRecord,
    DataRecord,
    ModelRecord,
    RunResult,
    SplitRecord,
    WorstExample,
)

FinishedRun = Callable[..., Path]
TEXTS = ["The soup was lovely.", "A dull film.", "kind", "two hours that nobody will get back"]


@pytest.fixture
def finished_run(tiny_llama: Path, tmp_path: Path) -> FinishedRun:
    """Function to the folder of a run whose trained weights are random and large, so that answers differ clearly."""

    def make(
        *, worst: tuple[str, ...] = tuple(TEXTS[:2]), model: Path = tiny_llama, dtype: str = "float32", **parts: Any
    ) -> Path:
        values = {
            "name": "tiny",
            "model": {"id": str(model), "max_length": 32, "dtype": dtype},
            "task": {"name": "sequence_classification", "labels": ["negative", "positive"]},
            "data": {"name": "files", "train": "train.csv"},
            "method": {"name": "lora", "rank": 4},
        }
        recipe = Recipe.from_values({**values, **parts}, origin="test")
        folder = tmp_path / "run"
        folder.mkdir()
        torch.manual_seed(0)
        head = recipe.task.head()
        base = load_model(recipe.model, head, storage=storage_of(recipe, head, dtype=getattr(torch, dtype)))
        context = TuningContext(head.peft_task_type, base.head_modules, 1, tokenizer=base.tokenizer)
        tuned = to_float32_masters(recipe.method.apply(base.model, context))
        with torch.no_grad():
            for weight in tuned.parameters():
                if weight.requires_grad:
                    weight.normal_(0, 0.2)
        save_weights(tuned, base.tokenizer, folder, spec=recipe.model)
        _result(recipe, dtype=dtype, worst=worst).write(folder)
        return folder

    return make


def _result(recipe: Recipe, *, dtype: str, worst: tuple[str, ...]) -> RunResult:
    examples = tuple(
        WorstExample(row=row, text=text, reference="positive", prediction="negative", loss=1.0)
        for row, text in enumerate(worst)
    )
    return RunResult(
        name="tiny",
        peftkit_version="0.1.0",
        started="2026-01-02T03:04:05+00:00",
        recipe=recipe.resolved(),
        recipe_sha256=recipe.sha256,
        data=DataRecord(source="files", rows={"train": 48}, fingerprint={"train": "0" * 64}),
        model=ModelRecord(
            artifact=ArtifactRecord(locator=recipe.model.id, origin="local"),
            architecture="LlamaForSequenceClassification",
            dtype=dtype,
            total_parameters=1000,
            trainable_parameters=100,
            head_parameters=64,
        ),
        cost=CostRecord(
            train_seconds=1.0, total_seconds=2.0, steps=1, examples_per_second=48, peak_memory_bytes=1, saved_bytes=1
        ),
        history=(),
        splits={"validation": SplitRecord(metrics={"accuracy": 0.5}, worst=examples)},
        best_metric="validation_accuracy",
        best_step=1,
        environment={"device": "cpu"},
    )


def quantized_layers(model: torch.nn.Module) -> int:
    return sum(weight.dtype in (torch.uint8, torch.int8) for weight in model.parameters())


@pytest.mark.parametrize(
    "quantization", [None, "nf4", {"name": "nf4", "double_quantization": False}, "fp4", {"name": "int8"}]
)
def test_base_is_stored_as_it_was_trained(finished_run: FinishedRun, quantization: Any) -> None:
    folder = finished_run(quantization=quantization)
    predict = load(folder, device="cpu")
    assert quantized_layers(predict.model) == (0 if quantization is None else 14)
    assert predict.merge_difference is None
    assert (load(folder).logits(TEXTS) == predict.logits(TEXTS)).all()


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_merging_goes_through_the_full_precision_base(
    finished_run: FinishedRun, quantization: str | None, tiny_llama: Path
) -> None:
    """Expected: peft alone, on the base as its checkpoint has it."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    folder = finished_run(quantization=quantization)
    apart, merged = load(folder), load(folder, merge=True)
    assert quantized_layers(merged.model) == 0
    assert not any("lora" in name for name, _ in merged.model.named_modules())
    torch.manual_seed(3)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=2)
    base.config.pad_token_id = merged.tokenizer.pad_token_id
    model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    with torch.no_grad():
        rows = [model(**merged.tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]
    assert merged.logits(TEXTS) == pytest.approx(torch.stack(rows).numpy(), abs=2e-5)
    worst = TEXTS[:2]
    assert merged.merge_difference == pytest.approx(abs(apart.logits(worst) - merged.logits(worst)).max(), abs=1e-7)


@pytest.mark.parametrize(
    ("quantization", "least", "most"), [(None, 0.0, 2e-5), ("int8", 1e-3, 0.5), ("nf4", 1e-2, 5.0)]
)
def test_merge_difference_is_rounding_or_what_quantization_took(
    finished_run: FinishedRun, quantization: str | None, least: float, most: float
) -> None:
    difference = load(finished_run(quantization=quantization), merge=True).merge_difference
    assert difference is not None
    assert least <= difference <= most


def test_without_worst_examples_there_is_no_difference_to_tell(finished_run: FinishedRun) -> None:
    predict = load(finished_run(worst=()), merge=True)
    assert predict.merge_difference is None
    assert not any("lora" in name for name, _ in predict.model.named_modules())


def test_worst_examples_of_pairs_are_pairs_again(finished_run: FinishedRun) -> None:
    folder = finished_run(worst=(f"A film.{PART_SEPARATOR}kind",))
    apart, merged = load(folder), load(folder, merge=True)
    pair = [("A film.", "kind")]
    assert merged.merge_difference == pytest.approx(abs(apart.logits(pair) - merged.logits(pair)).max(), abs=1e-7)
    assert abs(apart.logits(pair) - apart.logits(["A film. kind"])).max() > 1e-3


def test_method_that_cannot_merge_is_refused_before_the_base_is_loaded(
    finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftkit import models

    folder = finished_run(method="prompt")
    assert load(folder)("kind")[0]["label"] in ("negative", "positive")
    monkeypatch.setattr(models, "load_tuned", None)
    with pytest.raises(CapabilityError, match="method 'prompt' cannot be merged into the base weights; load it with"):
        load(folder, merge=True)


def test_base_that_is_stored_quantized_is_not_merged_into(
    finished_run: FinishedRun, tiny_llama: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from peftkit.quantization import quantizers

    config = quantizers.build("nf4").config(compute_dtype=torch.float32, keep=["lm_head"])
    stored = tmp_path / "stored"
    AutoModelForCausalLM.from_pretrained(tiny_llama, quantization_config=config).save_pretrained(stored)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(stored)
    folder = finished_run(model=stored)
    assert quantized_layers(load(folder).model) == 14
    with pytest.raises(CapabilityError, match="is stored as bitsandbytes: merging would round the adapter away"):
        load(folder, merge=True)


def test_sixteen_bit_base_is_held_in_its_type(finished_run: FinishedRun) -> None:
    folder = finished_run(dtype="bfloat16")
    apart, merged = load(folder), load(folder, merge=True)
    for predict in (apart, merged):
        assert predict.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert merged.merge_difference is not None
    assert 0 < merged.merge_difference < 0.5, "weights are rounded to 8 bits of fraction when the adapter is added"


def test_batches_are_computed_without_padding(finished_run: FinishedRun) -> None:
    """Rows that are computed alone have no padding, and are what those of a batch must equal."""
    predictor = load(finished_run(), device="cpu")
    alone = predictor.logits(TEXTS, batch_size=1)
    ((_, blocks),) = block_lists(predictor.model).items()
    shapes: list[tuple[int, ...]] = []
    blocks[0].mlp.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape[:2])))
    together = predictor.logits(TEXTS, batch_size=4)
    tokens = sum(len(predictor.tokenizer(text)["input_ids"]) for text in TEXTS)
    assert shapes == [(1, tokens)]
    assert together == pytest.approx(alone, abs=1e-5)
