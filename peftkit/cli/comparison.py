"""`peftkit compare`: variants of a recipe over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftkit.cli.group import PluginFiles, Settings, TrustRemoteCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.compare.running import SuiteOptions
    from peftkit.compare.suite import Plan, PlannedRun

_Suite = typer.Argument(metavar="SUITE", help="Suite file (YAML).", show_default=False)
_Out = typer.Option(metavar="DIR", help="Where runs and tables go; default: runs/compare/<name of the suite>.")
_Seeds = typer.Option(metavar="N,N,...", help="Seeds instead of the suite's: --seeds 0,1.")
_Only = typer.Option(metavar="LABEL", help="Run this variant only; may be repeated.")
_Retry = typer.Option("--retry-failed", metavar="", help="Run again what has failed before.")
_Report = typer.Option("--report-only", metavar="", help="Run nothing; compare what is finished.")
_Quiet = typer.Option("--quiet", metavar="", help="No progress; only the result.")


def compare(  # noqa: PLR0913 - typer makes each option from a parameter
    suite: Annotated[Path, _Suite],
    out: Annotated[Path | None, _Out] = None,
    settings: Settings = None,
    seeds: Annotated[str | None, _Seeds] = None,
    only: Annotated[list[str] | None, _Only] = None,
    retry_failed: Annotated[bool, _Retry] = False,
    report_only: Annotated[bool, _Report] = False,
    quiet: Annotated[bool, _Quiet] = False,
    plugin: PluginFiles = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Run variants of a recipe over seeds and compare them.

    Each run is a normal run folder, found again by what its recipe says: started again, a suite runs only what is
    missing. A run that fails is recorded and shown; the others go on.
    """
    from peftkit.cli.plugin_files import load_plugin_files
    from peftkit.compare.running import SuiteOptions
    from peftkit.compare.suite import read_plan

    load_plugin_files(plugin)
    # Nothing of torch is imported here: only the runs need it, each in a process of its own.
    plan = read_plan(suite, settings=settings or (), seeds=_seeds(seeds))
    folder = out or Path("runs", "compare", plan.suite.name)
    runs = plan.runs(folder)
    if report_only:
        if only or retry_failed:
            raise UsageError(f"--report-only runs nothing: remove {'--only' if only else '--retry-failed'}")
        _print_comparison(plan, runs, folder)
        return
    chosen = _chosen(runs, only)
    shared = [word for path in plugin or () for word in ("--plugin", str(path))]
    shared += ["--trust-remote-code"] if trust_remote_code else []
    again = _again(suite, out=out, set=settings, seeds=seeds, only=only, options=shared)
    _run(plan, chosen, folder, options=SuiteOptions(retry_failed, tuple(shared), again), quiet=quiet)
    _print_comparison(plan, runs, folder)
    _tell_failures(chosen)


def _run(plan: Plan, runs: Sequence[PlannedRun], folder: Path, *, options: SuiteOptions, quiet: bool) -> None:
    from rich.console import Console

    from peftkit.compare.running import run_missing

    if not quiet:
        typer.echo(f"{plan.suite.name}: {_counted(len(runs), 'run')} -> {folder}", err=True)
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False, soft_wrap=True)
    run_missing(runs, folder, console, options=options)


def _again(suite: Path, *, options: Sequence[str], **given: object) -> str:
    """The command that continues the suite."""
    import shlex

    words = ["peftkit", "compare", str(suite)]
    for name, value in given.items():
        for item in value if isinstance(value, list) else [value] if value is not None else []:
            words += [f"--{name}", str(item)]
    return shlex.join([*words, *options])


def _print_comparison(plan: Plan, runs: Sequence[PlannedRun], folder: Path) -> None:
    from rich.console import Console

    from peftkit.cli.output import print_pairs, print_wrapped
    from peftkit.compare.outcome import gather, write
    from peftkit.compare.table import notes, terminal_tables

    comparison = gather(plan.suite, runs)
    console = Console()
    for table in terminal_tables(comparison, console):
        console.print(table)
    for note in notes(comparison):
        print_wrapped(note, first="- ", rest="  ")
    typer.echo("")
    print_pairs((path.name, str(path)) for path in write(comparison, folder))


def _tell_failures(runs: Sequence[PlannedRun]) -> None:
    """A suite with failures is not done; its exit code says so."""
    from peftkit.compare.running import State, state
    from peftkit.errors import RunError

    failed = [run for run in runs if state(run) is State.FAILED]
    if failed:
        logs = "\n".join(f"  {run.log_file}" for run in failed)
        raise RunError(
            f"{len(failed)} of {_counted(len(runs), 'run')} failed; the rest is compared above. What they said:\n"
            f"{logs}\nrun them again with --retry-failed"
        )


def _chosen(runs: Sequence[PlannedRun], only: Sequence[str] | None) -> list[PlannedRun]:
    labels = list(dict.fromkeys(run.label for run in runs))
    for label in only or ():
        if label not in labels:
            raise UsageError(f"--only {label}: the suite has no such variant (it has: {', '.join(labels)})")
    return [run for run in runs if not only or run.label in only]


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) < 2**32 for word in words) or len({*words}) < len(words):
        raise UsageError(f"--seeds {text}: write different whole numbers with commas, such as 0,1,2")
    return tuple(int(word) for word in words)


def _counted(amount: int, noun: str) -> str:
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"
