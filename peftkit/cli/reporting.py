"""`peftkit report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run.")],
    open_it: Annotated[bool, typer.Option("--open", metavar="", help="Open the report in the browser.")] = False,
) -> None:
    """Print the path of a run's report, or open it.

    A report that is gone is written anew from run.json.
    """
    from peftkit.errors import CapabilityError
    from peftkit.report import REPORT_FILE, write_report
    from peftkit.results import MULTI_TASK_FILE, MultiTaskResult, read_result

    path = run_dir / REPORT_FILE
    if (run_dir / MULTI_TASK_FILE).is_file():
        from peftkit.joint.page import write_page

        path = write_page(MultiTaskResult.read(run_dir), run_dir)
    else:
        folder, result = read_result(run_dir)
        if not path.is_file():
            path = write_report(result, folder)
    typer.echo(str(path))
    if open_it:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()):
            raise CapabilityError(f"this machine has no browser to open; copy the file '{path}' to one that has")
