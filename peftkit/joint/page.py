"""What is shown of tasks that were trained together: one page, and a table for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.compare.page import environment
from peftkit.report import REPORT_FILE, wording
from peftkit.results import MultiTaskResult

if TYPE_CHECKING:
    from rich.table import Table

_UNTOUCHED = "test"


def headline_split(result: MultiTaskResult) -> str:
    """The split whose mean stands for the run: test, if every task has one."""
    return _UNTOUCHED if _UNTOUCHED in result.means else next(iter(result.means))


def write_page(result: MultiTaskResult, run_dir: Path) -> Path:
    """Write `report.html`; it appears whole or not at all.

    Returns:
        Its path.
    """
    page = environment("joint").get_template("multi_task.html.jinja")
    split = headline_split(result)
    text = page.render(
        result=result,
        recipe=result.recipe,
        split=split,
        mean=result.means[split],
        duration=wording.duration,
        report=REPORT_FILE,
    )
    staged = run_dir / f".{REPORT_FILE}.part"
    staged.write_text(text, "utf-8")
    return staged.replace(run_dir / REPORT_FILE)


def table(result: MultiTaskResult) -> Table:
    """Every task with its scores, and their mean, for the terminal."""
    from rich.table import Table

    split = headline_split(result)
    shown = Table(
        "task", "", "rows", "share", "metric", split, "95 % interval", title=result.name, title_justify="left"
    )
    for task in result.tasks:
        interval = task.intervals[split].get(task.metric)
        shown.add_row(
            task.name,
            wording.plain_name(task.task),
            f"{task.rows:,}",
            wording.share(task.share, 1),
            wording.plain_name(task.metric),
            wording.number(task.metrics[split][task.metric]),
            f"{wording.number(interval.low)} to {wording.number(interval.high)}" if interval else "",
        )
    shown.add_row("mean", "", "", "", "", wording.number(result.means[split]), "", style="bold")
    return shown
