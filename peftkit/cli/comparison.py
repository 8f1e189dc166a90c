"""`peftkit compare`: variants of a recipe over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftkit.cli.group import PluginFiles, Settings, TrustRemoteCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftkit.compare.suite import PlannedRun


def compare(  # noqa: PLR0913 - typer makes each option from a parameter
    suite: Annotated[Path, typer.Argument(metavar="SUITE", help="Suite file (YAML).", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where runs and tables go; default: runs/compare/<name>.")
    ] = None,
    settings: Settings = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Run these variants only; may be repeated.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", metavar="", help="Run again what has failed before.")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", metavar="", help="Run nothing; compare what is finished.")
    ] = False,
    plugin: PluginFiles = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Run variants of a recipe over seeds and compare them.

    Each run is a normal run folder, found again by its content: started again, the suite runs only what is missing.
    """
    from peftkit.cli.plugin_files import load_plugin_files
    from peftkit.compare.suite import plan, read_suite

    load_plugin_files(plugin)
    found = read_suite(suite)
    folder = out or Path("runs", "compare", found.name)
    runs = plan(found, suite, folder, settings=settings or ())
    chosen = _chosen(runs, only)
    if not report_only:
        from peftkit.compare.running import run_missing

        options = [word for path in plugin or () for word in ("--plugin", str(path))]
        options += ["--trust-remote-code"] if trust_remote_code else []
        typer.echo(f"{found.name}: {len(chosen)} runs -> {folder}", err=True)
        run_missing(chosen, lambda line: typer.echo(line, err=True), retry_failed=retry_failed, options=options)

    from rich.console import Console

    from peftkit.compare.outcome import gather, write
    from peftkit.compare.table import notes, terminal_table

    comparison = gather(found, runs)
    Console().print(terminal_table(comparison))
    for note in notes(comparison):
        typer.echo(note)
    for path in write(comparison, folder):
        typer.echo(str(path))


def _chosen(runs: Sequence[PlannedRun], only: Sequence[str] | None) -> list[PlannedRun]:
    labels = list(dict.fromkeys(run.label for run in runs))
    for label in only or ():
        if label not in labels:
            raise UsageError(f"--only {label}: the suite has no such variant (it has: {', '.join(labels)})")
    return [run for run in runs if not only or run.label in only]
