"""A run folder to predict with, made without training: what counts here is what the commands do with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.methods import TuningContext
from peftkit.models import Storage, load_model, save_weights
from peftkit.recipe import Recipe
from peftkit.results import (
    ArtifactRecord,
    CostRecord,
    DataRecord,
    HistoryPoint,
    ModelRecord,
    RunResult,
    SplitRecord,
)


@pytest.fixture(scope="session")
def tiny_recipe(tiny_bert: Path) -> Recipe:
    return Recipe.from_text(
        f"""
        name: tiny
        model: {{id: {tiny_bert}, max_length: 32}}
        task: {{name: sequence_classification, labels: [negative, positive]}}
        data: {{name: files, train: train.csv}}
        method: {{name: lora, rank: 4}}
        """
    )


@pytest.fixture(scope="session")
def finished_run(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose LoRA matrices and head are random and large, so that answers differ clearly."""
    folder = tmp_path_factory.mktemp("runs") / "tiny run"
    folder.mkdir()
    torch.manual_seed(0)
    head = tiny_recipe.task.head()
    base = load_model(tiny_recipe.model, head, storage=Storage(torch.float32))
    context = TuningContext(peft_task_type=head.peft_task_type, head_modules=base.head_modules, total_steps=1)
    model = tiny_recipe.method.apply(base.model, context)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.5)
    save_weights(model, base.tokenizer, folder, spec=tiny_recipe.model)
    _result(tiny_recipe).write(folder)
    (folder / "recipe.yaml").write_text(tiny_recipe.to_yaml(), "utf-8")
    return folder


def _result(recipe: Recipe) -> RunResult:
    return RunResult(
        name="tiny",
        peftkit_version="0.1.0",
        started="2026-01-02T03:04:05+00:00",
        recipe=recipe.resolved(),
        recipe_sha256=recipe.sha256,
        data=DataRecord(source="files", rows={"train": 48}, fingerprint={"train": "0" * 64}),
        model=ModelRecord(
            artifact=ArtifactRecord(locator=recipe.model.id, origin="local"),
            architecture="BertForSequenceClassification",
            dtype="float32",
            total_parameters=1000,
            trainable_parameters=100,
            head_parameters=66,
        ),
        cost=CostRecord(
            train_seconds=1.0, total_seconds=2.0, steps=1, examples_per_second=48, peak_memory_bytes=1, saved_bytes=1
        ),
        history=(HistoryPoint(step=1, epoch=1.0, values={"loss": 0.7}),),
        splits={"validation": SplitRecord(metrics={"accuracy": 0.5})},
        best_metric="validation_accuracy",
        best_step=1,
        environment={"device": "cpu"},
    )


@pytest.fixture(scope="session")
def answers_by_hand(finished_run: Path, tiny_bert: Path) -> Any:
    """Function from texts to the probability of `positive`, by transformers and peft alone, one text at a time."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(1)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2)
    model = PeftModel.from_pretrained(base, finished_run / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)

    def positive(texts: Sequence[str]) -> Mapping[str, float]:
        with torch.no_grad():
            batches = [tokenizer(text, truncation=True, max_length=32, return_tensors="pt") for text in texts]
            rows = [model(**batch).logits.softmax(-1)[0, 1].item() for batch in batches]
        return dict(zip(texts, rows, strict=True))

    return positive
