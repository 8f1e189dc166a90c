"""Finished runs that were never made: their `RunResult`, and comparisons of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from peftkit.compare.summary import Comparison, Score, summarize
from peftkit.results import (
    ArtifactRecord,
    CostRecord,
    DataRecord,
    HistoryPoint,
    ModelRecord,
    RunResult,
    SplitRecord,
)

MakeRun = Callable[..., RunResult]
MakeComparison = Callable[..., Comparison]

ENVIRONMENT = {"device": "cpu", "precision": "fp32", "cpu_cores": "8", "torch": "2.13.0"}
ROWS = {"train": 600, "validation": 100, "test": 300}


FACTS: dict[str, Any] = {
    "trainable": 40_000,
    "head": 2_000,
    "saved": 160_000,
    "memory": 800 * 2**20,
    "rate": 50.0,
    "seconds": {"validation": 0.004, "test": 0.002},
    "learning_rate": 1e-3,
    "fingerprint": "1f" * 32,
    "locator": "org/tiny",
    "environment": ENVIRONMENT,
    "quantization": None,
    "warnings": (),
}


def _make_run(
    score: float = 0.8, *, seed: int = 0, method: str = "lora", splits: Any = None, **changes: Any
) -> RunResult:
    """A run over 2 epochs of 75 steps; `changes` replace `FACTS` of it."""
    facts = {**FACTS, **changes}
    scores = splits or {"validation": {"accuracy": score + 0.01}, "test": {"accuracy": score}}
    fingerprint = {"train": facts["fingerprint"], "test": "3d" * 32}
    return RunResult(
        name=f"{method}-seed{seed}",
        peftkit_version="0.1.0",
        started="2026-01-02T03:04:05+00:00",
        recipe=_recipe(facts, seed=seed, method=method),
        recipe_sha256="5c" * 32,
        data=DataRecord(source="files", rows=ROWS, fingerprint=fingerprint),
        model=_model(facts),
        cost=CostRecord(
            train_seconds=24.0,
            total_seconds=30.0,
            steps=75,
            examples_per_second=facts["rate"],
            peak_memory_bytes=facts["memory"],
            saved_bytes=facts["saved"],
        ),
        history=(HistoryPoint(step=75, epoch=2.0, values={"loss": 0.3}),),
        splits={
            split: SplitRecord(metrics=metrics, seconds_per_example=facts["seconds"].get(split))
            for split, metrics in scores.items()
        },
        best_metric="validation_accuracy",
        best_step=75,
        environment=facts["environment"],
        warnings=facts["warnings"],
    )


def _recipe(facts: Mapping[str, Any], *, seed: int, method: str) -> dict[str, Any]:
    rate = {"learning_rate": facts["learning_rate"], "best_metric": "accuracy"}
    return {
        "seed": seed,
        "model": {"id": facts["locator"]},
        "task": {"name": "sequence_classification", "labels": ["negative", "positive"]},
        "data": {"name": "files", "train": "train.csv"},
        "method": {"name": method},
        "quantization": {"name": facts["quantization"]} if facts["quantization"] else None,
        "metrics": [{"name": "accuracy"}],
        "training": {**rate, "batch_size": 8, "accumulation_steps": 2},
    }


def _model(facts: Mapping[str, Any]) -> ModelRecord:
    origin = "local" if facts["locator"].startswith("/") else "hub"
    return ModelRecord(
        artifact=ArtifactRecord(locator=facts["locator"], origin=origin, sha256="77" * 32),
        architecture="BertForSequenceClassification",
        dtype="float32",
        total_parameters=1_000_000,
        trainable_parameters=facts["trainable"],
        head_parameters=facts["head"],
    )


def _make_comparison(
    scores: Mapping[str, Sequence[float]],
    *,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    greater_is_better: bool = True,
    **changes: Any,
) -> Comparison:
    """Variants by label with a score per seed; `facts` by label are handed to `make_run`."""
    results = {
        label: {seed: _make_run(score, seed=seed, **(facts or {}).get(label, {})) for seed, score in enumerate(values)}
        for label, values in scores.items()
    }
    score = Score("test", "accuracy", greater_is_better)
    values: dict[str, Any] = {
        "name": "methods",
        "description": "",
        "score": score,
        "labels": tuple(scores),
        "seeds": tuple(range(max(map(len, scores.values())))),
        "summaries": summarize(results, score),
        "failures": {},
        "missing": {},
    }
    return Comparison(**{**values, **changes})


@pytest.fixture
def make_run() -> MakeRun:
    return _make_run


@pytest.fixture
def make_comparison() -> MakeComparison:
    return _make_comparison
