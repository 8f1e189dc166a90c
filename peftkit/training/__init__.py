"""Running a recipe: `run` it to the finished folder, `resume` a stopped run, `check` it without training."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from peftkit.artifacts import locate_model, locate_tokenizer
from peftkit.errors import InterruptedRunError, RunError
from peftkit.models import load_tokenizer, quiet_libraries, save_weights, storage_of
from peftkit.recipe import Recipe
from peftkit.report import write_report
from peftkit.results import RUN_FILE, RunResult
from peftkit.tasks import Task
from peftkit.training.base_values import with_base_values
from peftkit.training.callbacks import SealCheckpoints, ShowProgress, StopOnInterrupt
from peftkit.training.checkpoints import newest_whole
from peftkit.training.encoding import Encoder
from peftkit.training.engines import build_trainer
from peftkit.training.environment import Environment, check_environment
from peftkit.training.prepare import PreparedData, check_metrics, completed, find_problems, load_rows, prepare_data
from peftkit.training.record import Outcome, Timing, build_result, model_record, score_splits, scores_before
from peftkit.training.scratch import lay_base
from peftkit.training.setup import Setup
from peftkit.training.teacher import check_teacher
from peftkit.training.trainer import HookedTrainer
from peftkit.training.tuning import check_method, tuned_model
from peftkit.training.verify import check_best_score, check_reload

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["CheckReport", "RunOptions", "check", "resume", "run"]

RECIPE_FILE = "recipe.yaml"
CHECKPOINTS_DIR = "checkpoints"
BASE_DIR = "base"
"""Where a model from scratch starts; goes when the run is finished."""


@dataclass(frozen=True)
class RunOptions:
    """What a user may decide about a run that is no part of its recipe.

    Args:
        overwrite: delete what a former run left in the run folder.
        trust_remote_code: let the model's repository run its own Python code.
        show_progress: write progress and warnings to standard error.
    """

    overwrite: bool = False
    trust_remote_code: bool = False
    show_progress: bool = True

    def console(self) -> Console:
        """Where progress goes; standard output stays free for results."""
        return Console(stderr=True, quiet=not self.show_progress, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class CheckReport:
    """What can be said of a recipe and its data without training."""

    source: str
    rows: Mapping[str, int]
    label_names: tuple[str, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


_DEFAULTS = RunOptions()


def run(recipe: Recipe, run_dir: Path | str, *, options: RunOptions = _DEFAULTS) -> RunResult:
    """Tune a model as the recipe says and leave a finished run in `run_dir`.

    Returns:
        What `run.json` holds.

    Raises:
        RunError: the folder is in use, training broke down, or the saved weights do not reload exactly.
        InterruptedRunError: the user stopped the run; `resume` continues it.
        PeftkitError: the recipe, its data or this machine do not allow the run.
    """
    run_dir = Path(run_dir)
    if recipe.distillation is not None and Path(recipe.distillation.teacher).resolve().is_relative_to(
        run_dir.resolve()
    ):
        raise RunError(f"distillation.teacher lies in '{run_dir}', which this run replaces; choose another --run-dir")
    claim(run_dir, overwrite=options.overwrite)
    return _run(recipe, run_dir, checkpoint=None, options=options)


def resume(run_dir: Path | str, *, options: RunOptions = _DEFAULTS) -> RunResult:
    """Continue a stopped run from its newest whole checkpoint, with the recipe in its folder.

    Raises:
        RunError: the folder holds no run, or one that is finished already.
    """
    run_dir = Path(run_dir)
    if not (run_dir / RECIPE_FILE).is_file():
        raise RunError(
            f"'{run_dir}' holds no run to resume (no {RECIPE_FILE}); "
            f"start one with  peftkit run RECIPE --run-dir {run_dir}"
        )
    if (run_dir / RUN_FILE).is_file():
        raise RunError(f"the run in '{run_dir}' is finished already; see it with  peftkit report {run_dir}")
    checkpoint = found_checkpoint(run_dir, options)
    return _run(Recipe.from_yaml(run_dir / RECIPE_FILE), run_dir, checkpoint=checkpoint, options=options)


def found_checkpoint(run_dir: Path, options: RunOptions) -> Path | None:
    """The checkpoint to resume a run from, announced; None: it starts anew."""
    console = options.console()
    checkpoint, passed_over = newest_whole(run_dir / CHECKPOINTS_DIR)
    for line in passed_over:
        console.print(f"warning: {line}")
    console.print(f"resuming from {checkpoint.name}" if checkpoint else "no checkpoint to resume from: starting anew")
    return checkpoint


def check(recipe: Recipe, *, options: RunOptions = _DEFAULTS) -> CheckReport:
    """Load and check the rows of a recipe, without weights and without training.

    Raises:
        PeftkitError: the recipe or its data cannot be used at all.
    """
    environment = check_environment(recipe, Path())
    loaded, task = load_rows(recipe)
    with TemporaryDirectory() as folder:
        recipe = lay_base(recipe, task, loaded.splits["train"], Path(folder) / BASE_DIR)
        tokenizer = _tokenizer(recipe, options)
        _check_models(recipe, task, tokenizer, rows=loaded.splits["train"], environment=environment)
        errors, warnings = find_problems(loaded, Encoder(task, tokenizer, max_length=recipe.model.max_length))
    return CheckReport(
        source=loaded.source,
        rows={split: len(rows) for split, rows in loaded.splits.items()},
        label_names=task.label_names,
        errors=tuple(errors),
        warnings=tuple(warnings),
        notes=loaded.notes,
    )


def claim(run_dir: Path, *, overwrite: bool) -> None:
    """Make sure that nothing of a former run can be mixed up with the new one.

    Raises:
        RunError: the folder is in use, and may not be replaced.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise RunError(f"'{run_dir}' is a file; choose a folder with --run-dir")
    left = sorted(path.name for path in run_dir.iterdir()) if run_dir.is_dir() else []
    if left in ([], [RECIPE_FILE]):  # a run that failed before it computed anything leaves its recipe only
        return
    if not overwrite:
        finished = RUN_FILE in left
        resumable = "" if finished or RECIPE_FILE not in left else f"continue it with  peftkit run --resume {run_dir}, "
        raise RunError(
            f"'{run_dir}' is not empty ({', '.join(left[:4])}{', ...' if len(left) > 4 else ''}); "
            f"{resumable}replace it with --overwrite, or choose another folder with --run-dir"
        )
    if RECIPE_FILE not in left:
        raise RunError(
            f"'{run_dir}' holds files that are no run of peftkit ({', '.join(left[:4])}), so --overwrite will not "
            "delete it; choose another folder with --run-dir"
        )
    shutil.rmtree(run_dir)


def _run(recipe: Recipe, run_dir: Path, *, checkpoint: Path | None, options: RunOptions) -> RunResult:
    timing = Timing(started=datetime.now(UTC), began=time.perf_counter(), resumed=checkpoint is not None)
    console = options.console()
    environment = check_environment(recipe, run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / RECIPE_FILE).write_text(recipe.to_yaml(), "utf-8")

    recipe, data = prepared(recipe, run_dir, environment=environment, options=options)
    tokenizer = data.tokenizer
    (run_dir / RECIPE_FILE).write_text(recipe.to_yaml(), "utf-8")

    storage = storage_of(recipe, data.task.head(), dtype=environment.weight_dtype)
    base = tuned_model(recipe, data, tokenizer, storage=storage, trust_remote_code=options.trust_remote_code)
    described = model_record(base)
    setup = with_base_values(Setup(recipe, base.model, data, environment))
    progress = ShowProgress(console, rows_per_step=recipe.training.batch_size * recipe.training.accumulation_steps)
    trainer = build_trainer(setup, run_dir / CHECKPOINTS_DIR, callbacks=[progress, *recipe.method.callbacks()])
    if recipe.training.batch_tokens is not None:
        batches = len(trainer.get_train_dataloader())
        progress.rows_per_step = len(data.features["train"]) / batches * recipe.training.accumulation_steps
    before = scores_before(trainer, setup.data) if recipe.training.score_before else None
    with timing.training():
        train(trainer, run_dir, checkpoint=checkpoint, progress=progress)
    timing.examples_per_second = progress.rate(trainer.state.global_step)

    recipe.method.finish(trainer.model)
    splits = score_splits(trainer, setup.data, before=before)
    check_best_score(trainer, splits)
    trainer.execution.remove()
    weights = save_weights(trainer.model, tokenizer, run_dir, spec=recipe.model)
    check_reload(trainer, storage=storage, run_dir=run_dir)
    result = build_result(trainer, Outcome(setup.data, described, splits, weights), timing=timing)
    _record(result, run_dir)
    return result


def _record(result: RunResult, run_dir: Path) -> None:
    """The last step: from here on the run is finished."""
    write_report(result, run_dir)
    result.write(run_dir)
    for served in (CHECKPOINTS_DIR, BASE_DIR):  # the saved weights are verified; what served only to resume can go
        shutil.rmtree(run_dir / served, ignore_errors=True)


def prepared(
    recipe: Recipe, run_dir: Path, *, environment: Environment, options: RunOptions
) -> tuple[Recipe, PreparedData]:
    """The recipe completed, with its rows checked and encoded; a model from scratch is laid in `run_dir`.

    Raises:
        PeftkitError: the recipe does not fit its data or its model.
    """
    loaded, task = load_rows(recipe)
    recipe = lay_base(recipe, task, loaded.splits["train"], run_dir / BASE_DIR)
    tokenizer = _tokenizer(recipe, options)
    _check_models(recipe, task, tokenizer, rows=loaded.splits["train"], environment=environment)
    data = prepare_data(recipe, loaded, task=task, tokenizer=tokenizer)
    for line in (*data.loaded.notes, *data.warnings):
        options.console().print(f"note: {line}")
    recipe = completed(recipe, data)
    check_metrics(recipe, data)
    return recipe, data


def _check_models(
    recipe: Recipe, task: Task, tokenizer: PreTrainedTokenizerBase, *, rows: Dataset, environment: Environment
) -> None:
    """Hold method, regularizers and teacher against the model and each other, before weights are read."""
    check_method(recipe, task.head(), tokenizer, dtype=environment.weight_dtype, rows=len(rows))
    check_teacher(recipe, task, tokenizer, rows=rows)


def _tokenizer(recipe: Recipe, options: RunOptions) -> PreTrainedTokenizerBase:
    spec = recipe.model
    if options.trust_remote_code:  # the tokenizer's own code comes with the model's
        artifact = locate_model(spec.locator, revision=spec.revision, trust_remote_code=True)
    else:
        artifact = locate_tokenizer(spec.locator, revision=spec.revision)
    tokenizer = load_tokenizer(artifact, trust_remote_code=options.trust_remote_code)
    recipe.method.prepare_tokenizer(tokenizer)
    recipe.task.prepare_tokenizer(tokenizer)
    return tokenizer


def train(trainer: HookedTrainer, run_dir: Path, *, checkpoint: Path | None, progress: ShowProgress) -> None:
    """Train to the end, from a checkpoint if there is one.

    Raises:
        InterruptedRunError: the user stopped it.
    """
    interrupt = StopOnInterrupt(progress.bar.console)
    trainer.add_callback(interrupt)
    trainer.add_callback(SealCheckpoints())
    try:
        with quiet_libraries():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        interrupt.stop()
        progress.stop()
    if interrupt.asked:
        raise InterruptedRunError(
            f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; everything up to here is "
            f"saved, continue with  peftkit run --resume {run_dir}"
        )
    trainer.regularization.finish()
