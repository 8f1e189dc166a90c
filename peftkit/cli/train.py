"""`peftkit run` and `peftkit check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftkit.cli.group import PluginFiles, Settings, TrustRemoteCode, UsageError
from peftkit.cli.quick_imports import quick_imports

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.multi_task import MultiTask
    from peftkit.pipeline import Pipeline
    from peftkit.recipe import Recipe
    from peftkit.results import RunResult
    from peftkit.training import RunOptions


_RecipeFile = typer.Argument(metavar="RECIPE", help="Recipe file (YAML).", show_default=False)
_RunDir = typer.Option(metavar="DIR", help="Where the result goes; default: runs/<name of the recipe>.")
_Resume = typer.Option(metavar="DIR", help="Continue the stopped run in DIR, with the recipe stored there.")
_Overwrite = typer.Option("--overwrite", metavar="", help="Delete what a former run left in the folder.")
_Quiet = typer.Option("--quiet", metavar="", help="No progress, notes and warnings; only the result.")


def run(  # noqa: PLR0913 - typer makes each option from a parameter
    recipe: Annotated[Path | None, _RecipeFile] = None,
    run_dir: Annotated[Path | None, _RunDir] = None,
    settings: Settings = None,
    resume: Annotated[Path | None, _Resume] = None,
    overwrite: Annotated[bool, _Overwrite] = False,
    quiet: Annotated[bool, _Quiet] = False,
    plugin: PluginFiles = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Train as a recipe says.

    The run folder then holds the adapter in the standard PEFT format, the resolved recipe, run.json with all scores,
    and report.html.
    """
    if resume is not None:
        _refuse_with_resume(recipe=recipe, set=settings, run_dir=run_dir, overwrite=overwrite)
    elif recipe is None:
        raise UsageError("name a recipe file, or a stopped run with --resume DIR")

    from peftkit.cli.plugin_files import load_plugin_files
    from peftkit.multi_task import MultiTask
    from peftkit.pipeline import Pipeline
    from peftkit.recipe_files import read_recipe

    load_plugin_files(plugin)
    # The recipe comes before the import of the training code, which takes seconds: its problems shall show at once.
    file = recipe or _stored(resume)
    loaded = read_recipe(file, settings=settings or ()) if file else None
    folder = resume or run_dir or Path("runs", str(loaded.name if loaded else ""))
    if not quiet:
        typer.echo(f"resuming {folder}" if resume or not loaded else f"{_in_short(loaded)} -> {folder}", err=True)

    with quick_imports():
        from peftkit import training

    options = training.RunOptions(overwrite=overwrite, trust_remote_code=trust_remote_code, show_progress=not quiet)
    if isinstance(loaded, Pipeline):
        _run_stages(loaded, folder, options)
    elif isinstance(loaded, MultiTask):
        _run_tasks(loaded, folder, options, resumes=resume is not None)
    elif loaded is None or resume is not None:
        _print_result(training.resume(folder, options=options), folder)
    else:
        _print_result(training.run(loaded, folder, options=options), folder)


def _stored(run_dir: Path | None) -> Path | None:
    """The recipe in a run folder, if it is there."""
    path = run_dir / "recipe.yaml" if run_dir else None
    return path if path and path.is_file() else None


def _run_stages(pipeline: Pipeline, folder: Path, options: RunOptions) -> None:
    import shlex

    from rich.console import Console

    from peftkit.cli.output import print_pairs
    from peftkit.report import REPORT_FILE
    from peftkit.stages.page import tables
    from peftkit.stages.running import run_pipeline

    result, comparison = run_pipeline(pipeline, folder, options=options)
    for table in tables(pipeline, comparison, result):
        Console().print(table)
    target = folder / result.stages[-1].folder
    pairs = {
        "target": str(target),
        "report": str(folder / REPORT_FILE),
        "next": f'peftkit predict {shlex.quote(str(folder))} "..."',
    }
    print_pairs(pairs.items())


def _run_tasks(recipe: MultiTask, folder: Path, options: RunOptions, *, resumes: bool) -> None:
    import shlex

    from rich.console import Console

    from peftkit.cli.output import print_pairs
    from peftkit.joint.page import table
    from peftkit.joint.running import resume_tasks, run_tasks
    from peftkit.report import REPORT_FILE

    result = resume_tasks(folder, options=options) if resumes else run_tasks(recipe, folder, options=options)
    Console().print(table(result))
    first = folder / result.tasks[0].folder
    pairs = {
        "tasks": ", ".join(str(folder / task.folder) for task in result.tasks),
        "report": str(folder / REPORT_FILE),
        "next": f'peftkit predict {shlex.quote(str(first))} "..."',
    }
    print_pairs(pairs.items())


def check(
    recipe: Annotated[Path, _RecipeFile],
    settings: Settings = None,
    plugin: PluginFiles = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Check a recipe and its data without training.

    Reports every problem at once, with key and line of the recipe or file and line of the data.
    """
    from peftkit.cli.plugin_files import load_plugin_files
    from peftkit.errors import DataError
    from peftkit.multi_task import MultiTask
    from peftkit.pipeline import Pipeline
    from peftkit.recipe_files import read_recipe

    load_plugin_files(plugin)
    loaded = read_recipe(recipe, settings=settings or ())
    if isinstance(loaded, Pipeline):
        recipes = [loaded.recipe(stage, model=loaded.model, seed=loaded.seeds[0]) for stage in loaded.stages]
    elif isinstance(loaded, MultiTask):
        recipes = [loaded.recipe(task) for task in loaded.tasks]
    else:
        recipes = [loaded]
    errors = [error for part in recipes for error in _check_one(part, trust_remote_code=trust_remote_code)]
    if errors:
        count = "1 problem" if len(errors) == 1 else f"{len(errors)} problems"
        raise DataError("\n  ".join([f"{recipe} cannot be trained, its data has {count}:", *errors]))
    typer.echo(f"\nready: train it with  {_run_command(recipe, settings=settings, plugin=plugin)}")


def _check_one(recipe: Recipe, *, trust_remote_code: bool) -> Sequence[str]:
    """Print what the check says of one recipe, but for the errors, which it gives."""
    from peftkit.cli.output import print_pairs, warn

    with quick_imports():
        from peftkit import training

    report = training.check(recipe, options=training.RunOptions(trust_remote_code=trust_remote_code))
    pairs = {
        "recipe": _in_short(recipe),
        "data": report.source,
        "rows": ", ".join(f"{split} {rows:,}" for split, rows in report.rows.items()),
        "labels": ", ".join(report.label_names),
    }
    print_pairs((name, meaning) for name, meaning in pairs.items() if meaning)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    for warning in report.warnings:
        warn(warning)
    return report.errors


def _refuse_with_resume(**given: object) -> None:
    reasons = {
        "recipe": "a resumed run uses the recipe in its folder",
        "set": "a resumed run keeps its recipe; for other settings start a new run",
        "run_dir": "a resumed run stays in its folder",
        "overwrite": "a resumed run continues what is in its folder",
    }
    for name, value in given.items():
        if value:
            option = "RECIPE" if name == "recipe" else f"--{name.replace('_', '-')}"
            raise UsageError(f"--resume and {option} exclude each other: {reasons[name]}")


def _in_short(recipe: Recipe | Pipeline | MultiTask) -> str:
    if hasattr(recipe, "stages"):
        return f"{recipe.name}: {', '.join(stage.name for stage in recipe.stages)} on {recipe.model.title}"
    if hasattr(recipe, "tasks"):
        return f"{recipe.name}: {', '.join(recipe.tasks)} with {recipe.method.name} on {recipe.model.title}"
    return f"{recipe.name}: {recipe.task.name} with {recipe.method.name} on {recipe.model.title}"


def _run_command(recipe: Path, *, settings: Sequence[str] | None, plugin: Sequence[Path] | None) -> str:
    import shlex

    words = ["peftkit", "run", str(recipe)]
    for setting in settings or ():
        words += ["--set", setting]
    for path in plugin or ():
        words += ["--plugin", str(path)]
    return shlex.join(words)


def _print_result(result: RunResult, folder: Path) -> None:
    import shlex

    from rich.console import Console

    from peftkit.cli.output import print_pairs
    from peftkit.models import ADAPTER_DIR, MODEL_DIR
    from peftkit.report import REPORT_FILE, summary_table

    Console().print(summary_table(result))
    weights = ADAPTER_DIR if (folder / ADAPTER_DIR).is_dir() else MODEL_DIR
    pairs = [
        (weights, str(folder / weights)),
        ("report", str(folder / REPORT_FILE)),
        ("next", f'peftkit predict {shlex.quote(str(folder))} "..."'),
    ]
    print_pairs(pairs)
