"""The comparison as rows of text: for the terminal, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from peftkit.compare.statistics import LEVEL, Summary, indistinguishable
from peftkit.report.wording import NOTHING, count, number, share, size

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Comparison:
    """Everything that is shown of a suite.

    Args:
        summaries: best first.
        failures: reasons by label and seed.
        missing: runs that have not been made, by label.
        differing_data: labels whose runs saw other rows than the rest.
        environment: of the runs; a value that differs between them is listed once for each.
    """

    name: str
    description: str
    split: str
    metric: str
    greater_is_better: bool
    seeds: tuple[int, ...]
    summaries: tuple[Summary, ...]
    failures: Mapping[str, Mapping[int, str]]
    missing: Mapping[str, int]
    differing_data: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def top(self) -> set[str]:
        """Labels that cannot be told apart from the best."""
        return indistinguishable(self.summaries, greater_is_better=self.greater_is_better)


HEADERS = (
    "variant", "method", "score", f"{100 * LEVEL:g} % interval", "runs", "trainable", "share", "saved", "peak memory",
    "train ms/ex.", "infer ms/ex.", "learning rate",
)  # fmt: skip


def cells(summary: Summary, comparison: Comparison) -> tuple[str, ...]:
    """One row of the table."""
    failed = len(comparison.failures.get(summary.label, {}))
    return (
        summary.label + (" *" if summary.label in comparison.top else ""),
        summary.method,
        number(summary.mean),
        f"{number(summary.low)} to {number(summary.high)}" if summary.low is not None and summary.high is not None
        else "one run",
        f"{len(summary.scores)}" + (f" ({failed} failed)" if failed else ""),
        count(summary.trainable_parameters),
        share(summary.trainable_parameters, summary.total_parameters),
        size(summary.saved_bytes),
        size(summary.peak_memory_bytes),
        _milliseconds(summary.train_seconds),
        _milliseconds(summary.inference_seconds),
        f"{summary.learning_rate:g}",
    )  # fmt: skip


def _milliseconds(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{1000 * seconds:.1f}"


def notes(comparison: Comparison) -> list[str]:
    """What has to be known to read the table."""
    seeds = ", ".join(map(str, comparison.seeds))
    found = [
        f"{comparison.metric} on {comparison.split}, mean over seeds {seeds}; intervals of the mean by Student's t.",
        "* not distinguishable from the best: the intervals overlap (or there is none).",
    ]
    if comparison.differing_data:
        found.append(
            f"WARNING: {', '.join(comparison.differing_data)} saw other rows than the rest; the scores do not compare."
        )
    found += [f"{label}: {n} of {len(comparison.seeds)} runs not made yet" for label, n in comparison.missing.items()]
    found += [
        f"{label} seed {seed} failed: {shorten(reason, 160, placeholder=' ...')}"
        for label, reasons in comparison.failures.items()
        for seed, reason in reasons.items()
    ]
    return found


def terminal_table(comparison: Comparison) -> Table:
    """The comparison for a terminal of 80 columns; the files hold more."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("variant")
    for header in ("score", "\N{PLUS-MINUS SIGN}", "runs", "trainable", "memory", "train ms", "infer ms"):
        table.add_column(header, justify="right")
    for summary in comparison.summaries:
        full = dict(zip(HEADERS, cells(summary, comparison), strict=True))
        half = number(summary.high - summary.mean) if summary.high is not None else NOTHING
        shown = (full["score"], half, full["runs"], full["trainable"], full["peak memory"])
        row = (full["variant"], *shown, full["train ms/ex."], full["infer ms/ex."])
        table.add_row(*map(Text, row), style="bold" if summary.label in comparison.top else None)
    return table


def markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown page."""
    lines = [f"# {comparison.name}", ""]
    lines += [comparison.description, ""] if comparison.description else []
    lines += [f"| {' | '.join(HEADERS)} |", f"|{'---|' * len(HEADERS)}"]
    lines += [f"| {' | '.join(_escaped(cells(summary, comparison)))} |" for summary in comparison.summaries]
    lines += ["", *(f"- {note}" for note in notes(comparison)), ""]
    lines += [f"- {name}: {value}" for name, value in comparison.environment.items()]
    return "\n".join(lines) + "\n"


def _escaped(row: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|").replace(" *", " \\*") for cell in row]


def csv_table(comparison: Comparison) -> str:
    """One line per variant, plain numbers in plain units."""
    text = io.StringIO()
    rows = [_plain(summary) for summary in comparison.summaries]
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["label"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def json_text(comparison: Comparison) -> str:
    """Everything, for other programs; no path of this machine."""
    content = asdict(comparison) | {"not_distinguishable_from_best": sorted(comparison.top)}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _plain(summary: Summary) -> dict[str, Any]:
    values = asdict(summary)
    values["scores"] = " ".join(f"{score:.6f}" for score in summary.scores.values())
    return values
