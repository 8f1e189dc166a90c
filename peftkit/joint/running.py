"""Training several tasks together: from their recipe to a folder in which each is a finished run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from peftkit.errors import PeftkitError, RecipeError, RunError
from peftkit.joint.page import write_page
from peftkit.joint.sharing import shared
from peftkit.joint.trainer import LOSS, JointTrainer, check_scores, joint_trainer, mean
from peftkit.models import LoadedModel, save_weights, storage_of
from peftkit.multi_task import MEAN, SEPARATOR, MultiTask
from peftkit.recipe import Recipe
from peftkit.report import write_report
from peftkit.results import (
    MULTI_TASK_FILE,
    HistoryPoint,
    JointTaskRecord,
    ModelRecord,
    MultiTaskResult,
    RunResult,
    SplitRecord,
)
from peftkit.training import CHECKPOINTS_DIR, RECIPE_FILE, RunOptions, claim, found_checkpoint, prepared, train
from peftkit.training.callbacks import ShowProgress
from peftkit.training.environment import Environment, check_environment
from peftkit.training.prepare import PreparedData
from peftkit.training.record import Outcome, Timing, build_result, model_record, score_splits, scores_before
from peftkit.training.setup import VALIDATION, Setup
from peftkit.training.tuning import tuned_model
from peftkit.training.verify import check_reload, compare_with_best

TASKS_DIR = "tasks"
_DEFAULTS = RunOptions()


def run_tasks(recipe: MultiTask, run_dir: Path | str, *, options: RunOptions = _DEFAULTS) -> MultiTaskResult:
    """Train all tasks of a recipe together; each leaves a finished run in `run_dir`/tasks.

    Returns:
        What `multi_task.json` holds.

    Raises:
        RunError: see `training.run`.
        InterruptedRunError: the user stopped it; `resume_tasks` continues it.
        PeftkitError: the recipe, the data of a task or this machine do not allow the run.
    """
    run_dir = Path(run_dir)
    claim(run_dir, overwrite=options.overwrite)
    return _run(recipe, run_dir, checkpoint=None, options=options)


def resume_tasks(run_dir: Path | str, *, options: RunOptions = _DEFAULTS) -> MultiTaskResult:
    """Continue a stopped run of several tasks from its newest whole checkpoint.

    Raises:
        RunError: it is finished already.
    """
    run_dir = Path(run_dir)
    if (run_dir / MULTI_TASK_FILE).is_file():
        raise RunError(f"the run in '{run_dir}' is finished already; see it with  peftkit report {run_dir}")
    checkpoint = found_checkpoint(run_dir, options)
    return _run(MultiTask.from_yaml(run_dir / RECIPE_FILE), run_dir, checkpoint=checkpoint, options=options)


def _run(recipe: MultiTask, run_dir: Path, *, checkpoint: Path | None, options: RunOptions) -> MultiTaskResult:
    timing = Timing(started=datetime.now(UTC), began=time.perf_counter(), resumed=checkpoint is not None)
    environment = check_environment(recipe.recipe(next(iter(recipe.tasks))), run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / RECIPE_FILE).write_text(recipe.to_yaml(), "utf-8")
    setups, described = set_up(recipe, environment, options)
    batch = recipe.training.batch_size * recipe.training.accumulation_steps
    progress = ShowProgress(options.console(), rows_per_step=batch)
    trainer = joint_trainer(recipe, setups, run_dir / CHECKPOINTS_DIR, callbacks=[progress])
    before = {task: scores_before(trainer, data) for task, data in trainer.each() if recipe.training.score_before}
    with timing.training():
        train(trainer, run_dir, checkpoint=checkpoint, progress=progress)
    timing.examples_per_second = progress.rate(trainer.state.global_step)

    for setup in setups.values():
        recipe.method.finish(setup.model)
    splits = {task: score_splits(trainer, data, before=before.get(task)) for task, data in trainer.each()}
    _check_best_score(trainer, recipe, splits)
    runs = {task: _saved(trainer, described[task], splits[task], run_dir, timing) for task, _ in trainer.each()}
    result = _result(trainer, recipe, runs, timing)
    write_page(result, run_dir)
    result.write(run_dir)
    shutil.rmtree(run_dir / CHECKPOINTS_DIR, ignore_errors=True)
    return result


def set_up(
    recipe: MultiTask, environment: Environment, options: RunOptions
) -> tuple[dict[str, Setup], dict[str, ModelRecord]]:
    """What each task is trained with, on models that share weights; and these models, to be recorded.

    Raises:
        PeftkitError: the recipe does not fit the data or the model.
    """
    found = {task: _prepared(recipe, task, environment, options) for task in recipe.tasks}
    check_scores(recipe, found)
    models = shared(_loaded(found, environment, options), adapters_too=recipe.adapters == "shared")
    setups = {task: Setup(own, models[task].model, data, environment) for task, (own, data) in found.items()}
    return setups, {task: model_record(model) for task, model in models.items()}


def _prepared(
    recipe: MultiTask, task: str, environment: Environment, options: RunOptions
) -> tuple[Recipe, PreparedData]:
    """The recipe of a task completed, and its rows checked and encoded."""
    try:
        own, data = prepared(recipe.recipe(task), Path(), environment=environment, options=options)
    except PeftkitError as problem:
        raise type(problem)(f"task {task!r}: {problem}") from problem
    if data.loaded.stream is not None:
        raise RecipeError(f"tasks.{task}.data: a stream of texts has no share among tasks; use  name: files")
    return own, data


def _loaded(
    found: Mapping[str, tuple[Recipe, PreparedData]], environment: Environment, options: RunOptions
) -> Iterator[tuple[str, LoadedModel]]:
    """Each task with the base model, its head and the method applied."""
    for task, (recipe, data) in found.items():
        storage = storage_of(recipe, data.task.head(), dtype=environment.weight_dtype)
        trusted = options.trust_remote_code
        yield task, tuned_model(recipe, data, data.tokenizer, storage=storage, trust_remote_code=trusted)


def _check_best_score(
    trainer: JointTrainer, recipe: MultiTask, splits: Mapping[str, Mapping[str, SplitRecord]]
) -> None:
    """See `verify.check_best_score`."""
    if all(VALIDATION in found for found in splits.values()):
        chosen = {task: str(setup.recipe.training.best_metric) for task, setup in trainer.setups.items()}
        found = {task: splits[task][VALIDATION].metrics[metric] for task, metric in chosen.items()}
        score = found.get(recipe.best_metric.partition(SEPARATOR)[0], mean(found))
        compare_with_best(trainer, score, name=recipe.best_metric)


def _saved(
    trainer: JointTrainer, described: ModelRecord, splits: Mapping[str, SplitRecord], run_dir: Path, timing: Timing
) -> RunResult:
    """The task at hand as a finished run in a folder of its own."""
    setup = trainer.setup
    task = trainer.task
    folder = run_dir / TASKS_DIR / task
    folder.mkdir(parents=True, exist_ok=True)
    trainer.execution.remove()
    weights = save_weights(setup.model, setup.data.tokenizer, folder, spec=setup.recipe.model)
    storage = storage_of(setup.recipe, setup.data.task.head(), dtype=setup.environment.weight_dtype)
    check_reload(trainer, storage=storage, run_dir=folder)
    result = build_result(trainer, Outcome(setup.data, described, splits, weights), timing=timing)
    others = ", ".join(name for name in trainer.setups if name != task)
    together = (f"trained together with {others}: times are those of all, and the recipe alone does not repeat it",)
    result = result.model_copy(
        update={
            "history": tuple(_history(result.history, task)),
            "warnings": (*result.warnings, *(together if others else ())),
        }
    )
    (folder / RECIPE_FILE).write_text(setup.recipe.to_yaml(), "utf-8")
    write_report(result, folder)
    result.write(folder)
    return result


def _history(points: Sequence[HistoryPoint], task: str) -> Iterator[HistoryPoint]:
    """What was logged of one task, under the names that it would have alone."""
    own = {f"{task}{SEPARATOR}": "", f"{VALIDATION}_{task}{SEPARATOR}": f"{VALIDATION}_"}
    of_all = {LOSS, f"{VALIDATION}_{MEAN}"}
    for point in points:
        values = {name: value for name, value in point.values.items() if SEPARATOR not in name and name not in of_all}
        for prefix, instead in own.items():
            values |= {
                f"{instead}{name.removeprefix(prefix)}": value
                for name, value in point.values.items()
                if name.startswith(prefix)
            }
        if values:
            yield point.model_copy(update={"values": values})


def _result(trainer: JointTrainer, recipe: MultiTask, runs: Mapping[str, RunResult], timing: Timing) -> MultiTaskResult:
    state, batches = trainer.state, trainer.batches
    metrics = {task: str(setup.recipe.training.best_metric) for task, setup in trainer.setups.items()}
    splits = [split for split in next(iter(runs.values())).splits if all(split in run.splits for run in runs.values())]
    cost = timing.cost(state.global_step, Path())
    return MultiTaskResult(
        name=recipe.name or "run",
        recipe=recipe.resolved(),
        tasks=tuple(
            JointTaskRecord(
                name=task,
                folder=f"{TASKS_DIR}/{task}",
                task=trainer.setups[task].recipe.task.name,
                rows=len(rows.features),
                share=count / len(batches),
                passes=count * (state.epoch or 0.0) / rows.batches_per_pass,
                metric=metrics[task],
                metrics=run.metrics,
                intervals={split: record.intervals for split, record in run.splits.items()},
            )
            for (task, run), rows, count in zip(runs.items(), batches.tasks, batches.counts, strict=True)
        ),
        means={
            split: mean({task: run.metrics[split][metrics[task]] for task, run in runs.items()}) for split in splits
        },
        best_metric=recipe.best_metric,
        best_step=state.best_global_step or state.global_step,
        cost=cost.model_copy(update={"saved_bytes": sum(run.cost.saved_bytes for run in runs.values())}),
    )
