"""Running what a pipeline needs, stage by stage."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from peftkit.compare.summary import Comparison
from peftkit.errors import RunError
from peftkit.models import Storage, load_tuned, merge_adapter, quiet_libraries
from peftkit.pipeline import Pipeline
from peftkit.recipe import Recipe
from peftkit.results import RUN_FILE, PipelineResult, RunResult, StageRecord
from peftkit.stages.nodes import ALL, START_DIR, Node, targets
from peftkit.stages.page import compared, write_pages
from peftkit.training import RECIPE_FILE, RunOptions, resume, run

_DEFAULTS = RunOptions()


def run_pipeline(
    pipeline: Pipeline, run_dir: Path | str, *, options: RunOptions = _DEFAULTS
) -> tuple[PipelineResult, Comparison]:
    """Train the stages of a pipeline and leave them in `run_dir`; stages that are finished there are not run again.

    Returns:
        What `pipeline.json` holds, and the target with and without the other stages.

    Raises:
        RunError: the folder holds something else, or a stage broke down.
        InterruptedRunError: the user stopped it; the same call goes on where it was.
        PeftkitError: a stage, its data or this machine do not allow the run.
    """
    run_dir = Path(run_dir).resolve()
    _claim(run_dir, options)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / RECIPE_FILE).write_text(pipeline.to_yaml(), "utf-8")
    found = targets(pipeline, run_dir)
    results = {node.key: _finished(node, pipeline, options) for node in _in_order(found)}
    result = PipelineResult(
        name=pipeline.name or "pipeline",
        recipe=pipeline.resolved(),
        root=str(run_dir),
        stages=tuple(_record(node, results[node.key], run_dir) for node in found[ALL][pipeline.seeds[0]].chain()),
    )
    comparison = compared(pipeline, found)
    write_pages(pipeline, comparison, result, run_dir)
    result.write(run_dir)
    return result, comparison


def _claim(run_dir: Path, options: RunOptions) -> None:
    left = sorted(path.name for path in run_dir.iterdir()) if run_dir.is_dir() else []
    if options.overwrite and left:
        raise RunError(
            f"'{run_dir}' is kept: a pipeline runs anew what has changed, and only that; delete the folder to start "
            "from nothing"
        )
    if left and (RUN_FILE in left or RECIPE_FILE not in left):
        listed = ", ".join(left[:4])
        raise RunError(f"'{run_dir}' holds something else ({listed}); choose another folder with --run-dir")


def _in_order(found: Mapping[str, Mapping[int, Node]]) -> Iterator[Node]:
    """Every node once, parents first."""
    seen: set[str] = set()
    for nodes in found.values():
        for target in nodes.values():
            for node in target.chain():
                if node.key not in seen:
                    seen.add(node.key)
                    yield node


def _finished(node: Node, pipeline: Pipeline, options: RunOptions) -> RunResult:
    """The result of a stage, run where it is not there yet."""
    if node.parent is not None and node.stage.start == "merged":
        write_start(node.parent.folder)
    console = options.console()
    after = f" after {node.parent.stage.name}" if node.parent else ""
    if (node.folder / RUN_FILE).is_file():
        console.print(f"stage {node.stage.name}{after}, seed {node.seed}: finished before")
        return RunResult.read(node.folder)
    console.print(f"stage {node.stage.name}{after}, seed {node.seed} -> {node.folder}")
    if (node.folder / RECIPE_FILE).is_file() and len(list(node.folder.iterdir())) > 1:
        return resume(node.folder, options=options)
    return run(node.recipe(pipeline), node.folder, options=options)


def write_start(folder: Path) -> Path:
    """The model that a finished run hands on, its adapter merged into full-precision weights, without its new head.

    Returns:
        The folder inside that of the run, which has the form of a base model.
    """
    start = folder / START_DIR
    if start.is_dir():
        return start
    result = RunResult.read(folder)
    recipe = Recipe.from_values(result.recipe, origin=str(folder / RUN_FILE))
    storage = Storage(getattr(torch, result.model.dtype), device="cpu")
    loaded = load_tuned(folder, recipe.model, recipe.task.head(), storage=storage)
    model = merge_adapter(loaded.model) if hasattr(loaded.model, "peft_config") else loaded.model
    heads = tuple(f"{name}." for name in loaded.head_modules)
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith(heads)}
    staged = folder / f".{START_DIR}.part"
    shutil.rmtree(staged, ignore_errors=True)
    with quiet_libraries():
        model.save_pretrained(staged, state_dict=weights)
        loaded.tokenizer.save_pretrained(staged)
    return staged.rename(start)


def _record(node: Node, result: RunResult, run_dir: Path) -> StageRecord:
    return StageRecord(
        name=node.stage.name,
        folder=str(node.folder.relative_to(run_dir)),
        task=node.stage.task.name,
        method=node.stage.method.name,
        start=node.stage.start if node.parent else "base",
        best_metric=result.best_metric,
        metrics=result.metrics,
        train_seconds=result.cost.train_seconds,
    )
