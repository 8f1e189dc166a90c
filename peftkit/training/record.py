"""What a run says of itself: scores with intervals, worst examples, cost, environment."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

import peftkit
from peftkit.artifacts.digests import file_sha256
from peftkit.methods.targets import folded
from peftkit.metrics.bootstrap import bootstrap_intervals
from peftkit.metrics.classification_detail import classification_detail
from peftkit.models import LoadedModel
from peftkit.results import (
    CostRecord,
    HistoryPoint,
    Interval,
    ModelRecord,
    RunResult,
    SplitRecord,
    WorstExample,
)
from peftkit.storage import parameter_count
from peftkit.tasks import Scored
from peftkit.training.environment import describe_environment
from peftkit.training.prepare import PreparedData
from peftkit.training.setup import VALIDATION
from peftkit.training.trainer import HookedTrainer, compared, scores

WORST_EXAMPLES = 20
_TEXT_SHOWN = 600
_NOT_LEARNING = ("_runtime", "_per_second", "_time", "num_tokens")


@dataclass
class Timing:
    """The clock of a run: wall time, and memory at its peak."""

    started: datetime
    began: float
    resumed: bool
    train_seconds: float = 0.0
    examples_per_second: float = 0.0

    @contextmanager
    def training(self) -> Iterator[None]:
        """Times the training loop, evaluations and checkpoints included."""
        since = time.perf_counter()
        yield
        self.train_seconds = time.perf_counter() - since

    def cost(self, steps: int, weights: Path) -> CostRecord:
        """The cost so far."""
        return CostRecord(
            train_seconds=self.train_seconds,
            total_seconds=time.perf_counter() - self.began,
            steps=steps,
            examples_per_second=self.examples_per_second,
            peak_memory_bytes=peak_memory_bytes(),
            saved_bytes=sum(path.stat().st_size for path in weights.glob("*.safetensors")),
        )

    def warnings(self) -> tuple[str, ...]:
        """What the times do not show."""
        return ("this run was resumed: times and speed cover only its last part",) if self.resumed else ()


def peak_memory_bytes() -> int:
    """Peak memory allocated on the GPU, or else the peak resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def score_splits(
    trainer: HookedTrainer, data: PreparedData, *, before: Mapping[str, SplitRecord] | None = None
) -> dict[str, SplitRecord]:
    """Scores on every split that is not trained on; on the training rows if there is no other.

    Args:
        before: what this gave before training.
    """
    splits = [split for split in data.features if split != "train"] or ["train"]
    found = {split: _score_split(trainer, data, split) for split in splits}
    if before is None:
        return found
    return {
        split: record.model_copy(update={"before": before[split].metrics, "before_intervals": before[split].intervals})
        for split, record in found.items()
    }


def scores_before(trainer: HookedTrainer, data: PreparedData) -> dict[str, SplitRecord]:
    """`score_splits` of the model as it is; training then draws the random numbers that it would have drawn anyway."""
    with torch.random.fork_rng():
        return score_splits(trainer, data)


def _score_split(trainer: HookedTrainer, data: PreparedData, split: str) -> SplitRecord:
    began = time.perf_counter()
    trainer.predict(data.features[split])
    seconds = time.perf_counter() - began
    scored = data.task.decode(trainer.outputs, data.encoded(split))
    chosen = trainer.setup.recipe.metrics
    intervals: dict[str, Interval] = {}
    for metric in chosen:
        intervals |= bootstrap_intervals(metric, *compared(metric, scored))
    detail = None
    if scored.probabilities is not None and scored.references.ndim == 1:
        detail = classification_detail(data.task.label_names, scored.references, scored.probabilities)
    return SplitRecord(
        metrics=scores(chosen, scored),
        intervals=intervals,
        classification=detail,
        worst=_worst(data, split, scored),
        seconds_per_example=seconds / len(data.features[split]),
    )


def _worst(data: PreparedData, split: str, scored: Scored) -> tuple[WorstExample, ...]:
    rows = data.loaded.splits[split]
    worst = [int(entry) for entry in scored.losses.argsort(kind="stable")[::-1][:WORST_EXAMPLES]]
    at = {entry: entry if scored.rows is None else int(scored.rows[entry]) for entry in worst}
    return tuple(
        WorstExample(
            row=row,
            origin=data.origin(split, row),
            text=data.task.shown(rows[row])[:_TEXT_SHOWN],
            reference=data.task.describe(scored.references[entry]),
            prediction=data.task.describe(scored.predictions[entry]),
            loss=float(scored.losses[entry]),
        )
        for entry, row in at.items()
    )


@dataclass(frozen=True)
class Outcome:
    """What a run has come to.

    Args:
        weights: folder of the saved weights inside the run folder.
    """

    data: PreparedData
    model: ModelRecord
    splits: Mapping[str, SplitRecord]
    weights: Path


def build_result(trainer: HookedTrainer, outcome: Outcome, *, timing: Timing) -> RunResult:
    """Everything about a run that is finished but for its report."""
    recipe, state = trainer.setup.recipe, trainer.state
    return RunResult(
        name=recipe.name or "run",
        peftkit_version=peftkit.__version__,
        started=timing.started.isoformat(timespec="seconds"),
        recipe=recipe.resolved(),
        recipe_sha256=recipe.sha256,
        data=outcome.data.record(),
        model=outcome.model,
        cost=timing.cost(state.global_step, outcome.weights),
        history=tuple(_history(state.log_history)),
        splits=outcome.splits,
        best_metric=f"{VALIDATION if VALIDATION in outcome.data.features else 'train'}_{recipe.training.best_metric}",
        best_step=state.global_step if recipe.method.runs_to_the_end else state.best_global_step or state.global_step,
        environment=describe_environment(trainer.setup.environment),
        execution=trainer.execution.described(),
        warnings=timing.warnings(),
        files=_digests(outcome.weights),
    )


def _digests(folder: Path) -> dict[str, str]:
    return {f"{folder.name}/{path.name}": file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}


def model_record(base: LoadedModel) -> ModelRecord:
    """The base model and what of it trains; to be asked before training, after which parts may have been dropped."""
    named = list(base.model.named_parameters())
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    heads = base.head_modules
    wrapped = base.model.get_base_model() if hasattr(base.model, "peft_config") else base.model
    return ModelRecord(
        artifact=base.artifact.record,
        architecture=type(wrapped).__name__,
        dtype=str(wrapped.dtype).removeprefix("torch."),
        total_parameters=sum(parameter_count(parameter) for _, parameter in named),
        trainable_parameters=sum(parameter.numel() for _, parameter in trained),
        head_parameters=sum(p.numel() for name, p in trained if any(f".{head}." in f".{name}" for head in heads)),
        trained_modules=tuple(folded(name.rpartition(".")[0] for name, _ in trained)),
    )


def _history(log: list[dict[str, Any]]) -> Iterator[HistoryPoint]:
    for entry in log:
        values = {
            key.replace("eval_", f"{VALIDATION}_", 1) if key.startswith("eval_") else key: float(value)
            for key, value in entry.items()
            if key not in ("step", "epoch", "total_flos", "train_loss") and not key.endswith(_NOT_LEARNING)
            if math.isfinite(value)  # fp16 skips steps whose gradient overflows; JSON has no word for infinity
        }
        if values:
            yield HistoryPoint(step=entry["step"], epoch=float(entry.get("epoch") or 0.0), values=values)
