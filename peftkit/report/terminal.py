"""The scores of a run as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.report.scores import main_score
from peftkit.report.wording import number
from peftkit.results import RunResult

if TYPE_CHECKING:
    from rich.table import Table


def summary_table(result: RunResult) -> Table:
    """Every metric of every split with its interval; the score that stands for the run in bold."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    levels = {interval.level for record in result.splits.values() for interval in record.intervals.values()}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("split")
    table.add_column("metric")
    table.add_column("score", justify="right")
    if levels:
        table.add_column(f"{_percent(levels)}interval", justify="right")
    compared = any(record.before for record in result.splits.values())
    if compared:
        table.add_column("before training", justify="right")
    main = main_score(result)
    for split, record in result.splits.items():
        for place, (metric, value) in enumerate(record.metrics.items()):
            interval = record.intervals.get(metric)
            cells = [split if place == 0 else "", metric, number(value)]
            cells += [f"{number(interval.low)} to {number(interval.high)}" if interval else ""] if levels else []
            cells += [number(record.before[metric]) if metric in record.before else ""] if compared else []
            bold = main is not None and (main.split, main.metric) == (split, metric)
            table.add_row(*(Text(cell) for cell in cells), style="bold" if bold else None)
    return table


def _percent(levels: set[float]) -> str:
    return f"{100 * next(iter(levels)):g} % " if len(levels) == 1 else ""
