"""Finished runs as their `RunResult`, and the tools to look into a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from peftkit.metrics.classification_detail import classification_detail
from peftkit.results import (
    ArtifactRecord,
    ClassificationDetail,
    CostRecord,
    DataRecord,
    HistoryPoint,
    Interval,
    ModelRecord,
    RunResult,
    SplitRecord,
    WorstExample,
)

TOPICS = ("World", "Sports", "Business", "Sci/Tech")
MakeRun = Callable[..., RunResult]
"""Keyword arguments replace fields of the run."""


def draw_detail(labels: Sequence[str], rows: int, *, skill: float = 2.5) -> ClassificationDetail:
    """A classifier that is right most of the time, and too sure of itself."""
    random = np.random.default_rng(len(labels))
    references = random.integers(0, len(labels), rows)
    logits = (
        random.normal(0, 1.6, (rows, len(labels))) + (skill + math.log(len(labels))) * np.eye(len(labels))[references]
    )
    exponents = np.exp(logits)
    return classification_detail(labels, references, exponents / exponents.sum(axis=1, keepdims=True))


def learning_history(steps: int, *, every: int, metrics: Mapping[str, float]) -> tuple[HistoryPoint, ...]:
    """A loss that falls, and scores that rise towards `metrics` and give way a little at the end."""
    random = np.random.default_rng(8)
    points = []
    for step in range(10, steps + 1, 10):
        loss = 0.35 + 1.1 * math.exp(-step / (steps / 5)) + float(random.normal(0, 0.035))
        values = {"loss": loss, "learning_rate": 3e-4 * (1 - step / steps), "grad_norm": float(random.uniform(1, 4))}
        points.append(HistoryPoint(step=step, epoch=3 * step / steps, values=values))
        if step % every == 0:
            progress = 1 - 0.3 * math.exp(-step / (steps / 5)) - 0.02 * max(0, step / steps - 0.75)
            scores = {f"validation_{name}": value * progress for name, value in metrics.items()}
            validation_loss = 0.42 + 0.9 * math.exp(-step / (steps / 6)) + 0.12 * max(0, step / steps - 0.6)
            points.append(
                HistoryPoint(step=step, epoch=3 * step / steps, values={"validation_loss": validation_loss, **scores})
            )
    return tuple(points)


WORST = (
    ("Oil prices climb as storm shuts Gulf platforms", "World", "Business", "news/test.csv:1841"),
    ("Quarterback's charity opens its third learning centre in the city where he grew up", "Business", "Sports", None),
    ("NASA's budget wins approval after late-night vote in the Senate", "World", "Sci/Tech", "news/test.csv:77"),
    ("مؤشرات الأسهم ترتفع بعد إعلان نتائج الشركات", "Business", "World", "news/test.csv:412"),
    ("🚀🚀 chip maker to the moon?? 🤔 analysts disagree", "Business", "Sci/Tech", "news/test.csv:9"),
    (
        "A very long report. " + "It goes on and on about nothing in particular, clause after clause. " * 8,
        "Sports",
        "World",
        None,
    ),
)


def make_worst(count: int) -> tuple[WorstExample, ...]:
    return tuple(
        WorstExample(
            row=31 * place + 7,
            origin=WORST[place % len(WORST)][3],
            text=WORST[place % len(WORST)][0][:600],
            reference=WORST[place % len(WORST)][1],
            prediction=WORST[place % len(WORST)][2],
            loss=7.41 - 0.23 * place,
        )
        for place in range(count)
    )


def make_splits() -> dict[str, SplitRecord]:
    scores = {"accuracy": 0.9124, "f1_macro": 0.9098, "matthews_correlation": 0.8833}
    splits = {}
    for split, drop in (("validation", 0.0), ("test", 0.011)):
        splits[split] = SplitRecord(
            metrics={name: value - drop for name, value in scores.items()},
            intervals={
                name: Interval(low=value - drop - 0.0132, high=value - drop + 0.0121) for name, value in scores.items()
            },
            classification=draw_detail(TOPICS, 1900),
            worst=make_worst(20),
        )
    return splits


RECIPE = {
    "name": "news-topics",
    "model": {"id": "bert-base-uncased", "revision": None, "dtype": "auto", "max_length": 128},
    "task": {"name": "sequence_classification", "problem_type": "single_label", "labels": list(TOPICS)},
    "data": {"name": "files", "path": "news", "columns": {"text": "title"}},
    "method": {
        "name": "lora",
        "rank": 8,
        "alpha": 16,
        "dropout": 0.05,
        "target_modules": ["query", "value"],
        "bias": "none",
    },
    "training": {"epochs": 3.0, "batch_size": 16, "learning_rate": 0.0003, "scheduler": "linear"},
    "metrics": ["accuracy", "f1_macro", "matthews_correlation"],
    "seed": 42,
}


DATA = DataRecord(
    source="files: news/{train,validation,test}.csv",
    artifacts=(ArtifactRecord(locator="news/train.csv", origin="local", sha256="ab12" * 16),),
    rows={"train": 12000, "validation": 1900, "test": 1900},
    fingerprint={"train": "1f" * 32, "validation": "2e" * 32, "test": "3d" * 32},
    notes=("first_available: the hub cannot be reached; took the second of 2 sources",),
    warnings=(
        "14 rows of split 'train' also stand in 'test' (first: row 311, 'Dollar slips against euro')",
        "3 rows of split 'train' are longer than 128 tokens and will be cut",
    ),
)
MODEL = ModelRecord(
    artifact=ArtifactRecord(
        locator="bert-base-uncased",
        origin="mirror",
        revision="1.0.2",
        sha256="77aa" * 16,
        note="the mirror holds a Q4_1 quantized copy of the weights: scores differ a little",
    ),
    architecture="BertForSequenceClassification",
    dtype="float32",
    total_parameters=109_781_768,
    trainable_parameters=297_988,
    head_parameters=3_076,
    trained_modules=(
        "bert.encoder.layer.*.attention.self.query.lora_A.default",
        "bert.encoder.layer.*.attention.self.query.lora_B.default",
        "bert.encoder.layer.*.attention.self.value.lora_A.default",
        "bert.encoder.layer.*.attention.self.value.lora_B.default",
        "classifier.modules_to_save.default",
    ),
)
COST = CostRecord(
    train_seconds=754.2,
    total_seconds=816.9,
    steps=2250,
    examples_per_second=47.7,
    peak_memory_bytes=1_871_000_000,
    saved_bytes=1_197_000,
)
ENVIRONMENT = {
    "device": "cpu",
    "precision": "fp32",
    "python": "3.11.2",
    "platform": "Linux-6.1-x86_64",
    "cpu_cores": "8",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "peft": "0.21.2",
}


def make_run(**changes: Any) -> RunResult:
    """A LoRA run on news topics; `changes` replace its fields."""
    values: dict[str, Any] = {
        "name": "news-topics",
        "peftkit_version": "0.1.0",
        "started": "2025-03-04T09:15:27+00:00",
        "recipe": RECIPE,
        "recipe_sha256": "5c8f" * 16,
        "data": DATA,
        "model": MODEL,
        "cost": COST,
        "history": learning_history(
            2250, every=250, metrics={"accuracy": 0.9124, "f1_macro": 0.9098, "matthews_correlation": 0.8833}
        ),
        "splits": make_splits(),
        "best_metric": "validation_accuracy",
        "best_step": 2000,
        "environment": ENVIRONMENT,
    }
    return RunResult(**{**values, **changes})


def make_regression(**changes: Any) -> RunResult:
    """Similarity of sentence pairs, no test split."""
    scores = {"pearson": 0.8712, "spearman": 0.8655, "mse": 0.5321}
    record = SplitRecord(
        metrics=scores,
        intervals={name: Interval(low=value - 0.02, high=value + 0.02) for name, value in scores.items()},
        worst=(
            WorstExample(
                row=3, text="A man plays. \u23ce A plane lands.", reference="4.800", prediction="0.312", loss=20.1
            ),
        ),
    )
    values: dict[str, Any] = {
        "splits": {"validation": record},
        "history": learning_history(600, every=100, metrics=scores),
        "best_metric": "validation_pearson",
        "best_step": 500,
    }
    return make_run(**{**values, **changes})


def make_many_classes(labels: Sequence[str], rows: int, *, skill: float = 2.5, **changes: Any) -> RunResult:
    """A test split with these labels."""
    record = SplitRecord(
        metrics={"accuracy": 0.71}, classification=draw_detail(labels, rows, skill=skill), worst=make_worst(3)
    )
    return make_run(**{"splits": {"test": record}, **changes})


@pytest.fixture(name="make_run")
def _make_run() -> MakeRun:
    return make_run


@pytest.fixture(name="make_regression")
def _make_regression() -> MakeRun:
    return make_regression


@pytest.fixture(name="make_many_classes")
def _make_many_classes() -> MakeRun:
    return make_many_classes


@pytest.fixture(scope="session")
def run() -> RunResult:
    """One ordinary finished run: validation and test, four classes, nine evaluations."""
    return make_run()
