"""The comparison as tables of text: for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import TYPE_CHECKING

from peftkit.compare.data_files import without_paths
from peftkit.compare.statistics import LEVEL
from peftkit.compare.summary import Comparison, Summary
from peftkit.report.wording import NOTHING, count, number, share, size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

TOP_MARK = "*"
"""Behind the labels of variants that cannot be told apart from the best mean."""
_LABEL = 24
"""Letters of a label that a narrow terminal has room for; longer ones are folded."""
_RUNS = "runs"
INTERVAL = f"{100 * LEVEL:g} % interval"


@dataclass(frozen=True)
class Column:
    """One column: its header, and its cell for a variant."""

    header: str
    cell: Callable[[Summary], str]


def interval_in_words(summary: Summary) -> str:
    """0.8512 to 0.8690; or that there is none."""
    found = summary.score.interval
    return f"{number(found.low)} to {number(found.high)}" if found else "none: 1 run"


def runs_in_words(comparison: Comparison, label: str) -> str:
    """How many of the runs of a variant are finished, and how many have failed: 1/3, 2 failed."""
    done = next((len(summary.results) for summary in comparison.summaries if summary.label == label), 0)
    failed = len(comparison.failures.get(label, {}))
    return f"{done}/{len(comparison.seeds)}" + (f", {failed} failed" if failed else "")


def per_example(seconds: float | None) -> str:
    """A time per example: 0.42 ms, 12.3 ms, 1.20 s."""
    if seconds is None:
        return NOTHING
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.{2 if seconds < 0.01 else 1 if seconds < 0.1 else 0}f} ms"


def learning_rate(summary: Summary) -> str:
    """The peak learning rate."""
    rate = summary.training.get("learning_rate")
    return f"{rate:g}" if rate is not None else NOTHING


def duration_of_training(summary: Summary) -> str:
    """Optimizer steps, from the least to the most over seeds, and epochs."""
    steps = " to ".join(f"{steps:,}" for steps in dict.fromkeys((summary.steps[0], summary.steps[-1])))
    return f"{steps} ({summary.epochs:.3g} epochs)"


def score_columns(comparison: Comparison) -> list[Column]:
    """How well, with how much."""
    return [
        Column(comparison.score.metric, lambda summary: number(summary.score.mean)),
        Column(INTERVAL, interval_in_words),
        Column(_RUNS, lambda summary: runs_in_words(comparison, summary.label)),
        Column("trainable", lambda summary: count(summary.first.model.trainable_parameters)),
        Column("share", _share),
    ]


def cost_columns() -> list[Column]:
    """What it took."""
    return [
        Column("saved", lambda summary: size(summary.saved_bytes)),
        Column("memory", lambda summary: size(summary.peak_memory_bytes)),
        Column("train/ex.", lambda summary: per_example(summary.train_seconds_per_example)),
        Column("infer/ex.", lambda summary: per_example(summary.inference_seconds_per_example)),
    ]


def training_columns() -> list[Column]:
    """How it was trained."""
    return [
        Column("method", lambda summary: summary.method),
        Column("without head", lambda summary: f"{summary.adapter_parameters:,}"),
        Column("head", lambda summary: f"{summary.first.model.head_parameters:,}"),
        Column("steps", duration_of_training),
        Column("learning rate", learning_rate),
    ]


def _share(summary: Summary) -> str:
    return share(summary.first.model.trainable_parameters, summary.first.model.total_parameters)


def verdict(comparison: Comparison) -> str:
    """Which variants the scores do not tell apart from the best mean."""
    score, top = comparison.score, comparison.top
    if len(comparison.summaries) == 1:
        return f"{top[0]} is the only variant with a finished run: there is nothing to compare it with"
    if len(top) == 1:
        others = [summary for summary in comparison.summaries if summary.label != top[0]]
        listed = f"that of {others[0].label}" if len(others) == 1 else "those of all others"
        return f"{top[0]} has the best {score.metric} on {score.split}; its interval does not overlap {listed}"
    if comparison.summaries[0].score.interval is None:
        return f"{top[0]} has the best mean of one run, which has no interval: it cannot be told apart from the others"
    return f"not distinguishable from the best mean, because the intervals overlap or there is none: {', '.join(top)}"


def warnings(comparison: Comparison) -> Iterator[str]:
    """What speaks against comparing these scores."""
    for name, values in comparison.differences.items():
        listed = "; ".join(f"{value} ({', '.join(labels)})" for value, labels in values.items())
        doubt = ": these scores do not compare" if name.startswith(("data of", "rows of", "base model")) else ""
        yield f"the runs differ in {name}{doubt}: {listed}"
    if any(len(summary.results) == 1 for summary in comparison.summaries):
        yield "a variant with one finished run has no interval: how much the seed matters is not known"
    for label, seeds in comparison.failures.items():
        for seed, reason in seeds.items():
            yield f"{label}, seed {seed} failed: {shorten(without_paths(reason), 240, placeholder=' ...')}"
    for label, missing in comparison.missing.items():
        yield f"{label}: {len(missing)} of {len(comparison.seeds)} runs not made yet"
    for summary in comparison.summaries:
        yield from summary.warnings


def how_to_read(comparison: Comparison) -> str:
    """What the numbers are."""
    score, seeds = comparison.score, ", ".join(map(str, comparison.seeds))
    return (
        f"{score.metric} on {score.split}, {'highest' if score.greater_is_better else 'lowest'} first: mean over seeds "
        f"{seeds}, {INTERVAL} of the mean by Student's t over seeds; times per example are medians over seeds, "
        "memory and size the largest"
    )


def notes(comparison: Comparison) -> list[str]:
    """What has to be known to read the tables."""
    return [
        f"{TOP_MARK} {verdict(comparison)}",
        how_to_read(comparison),
        *(f"WARNING: {warning}" for warning in warnings(comparison)),
    ]


def terminal_tables(comparison: Comparison, console: Console) -> list[Table]:
    """One table if the console is wide enough, else scores and costs one below the other."""
    scores, costs = score_columns(comparison), cost_columns()
    whole = _table(comparison, [*scores, *costs])
    unlimited = console.options.update(width=10_000)
    if console.measure(whole, options=unlimited).maximum <= console.width:
        return [whole]
    return [_table(comparison, scores), _table(comparison, costs)]


def _table(comparison: Comparison, columns: Sequence[Column]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    content = rows(comparison, columns)
    longest = max(len(row[0]) for row in content)
    table.add_column("variant", overflow="fold", min_width=min(_LABEL, longest), no_wrap=longest <= _LABEL)
    for column in columns:
        table.add_column(column.header, justify="right", no_wrap=column.header != _RUNS)
    for row in content:
        bold = row[0].endswith(f" {TOP_MARK}")
        table.add_row(*map(Text, row), style="bold" if bold else None)
    return table


def rows(comparison: Comparison, columns: Sequence[Column]) -> list[list[str]]:
    """Label and cells of every variant; of those without a finished run only what became of them."""
    found = [
        [
            f"{summary.label} {TOP_MARK}" if summary.label in comparison.top else summary.label,
            *(column.cell(summary) for column in columns),
        ]
        for summary in comparison.summaries
    ]
    for label in comparison.without_result:
        said = {_RUNS: runs_in_words(comparison, label)}
        found.append([label, *(said.get(column.header, NOTHING) for column in columns)])
    return found


def markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown page."""
    lines = [f"# {comparison.name}", ""]
    lines += [comparison.description, ""] if comparison.description else []
    lines += _markdown_table(comparison, [*score_columns(comparison), *cost_columns()])
    lines += ["", *(f"- {_escaped(note)}" for note in notes(comparison)), ""]
    lines += ["## How they were trained", "", *_markdown_table(comparison, training_columns()), ""]
    lines += ["## Every run", "", *_scores_by_seed(comparison), ""]
    lines += [
        "## The same in all runs",
        "",
        *(f"- {name}: {_escaped(value)}" for name, value in comparison.shared.items()),
    ]
    return "\n".join(lines) + "\n"


def _markdown_table(comparison: Comparison, columns: Sequence[Column]) -> list[str]:
    header = ["variant", *(column.header for column in columns)]
    return _pipes(header, rows(comparison, columns))


def _scores_by_seed(comparison: Comparison) -> list[str]:
    table = [
        [
            summary.label,
            *(number(summary.scores[seed]) if seed in summary.scores else NOTHING for seed in comparison.seeds),
        ]
        for summary in comparison.summaries
    ]
    return _pipes(["variant", *(f"seed {seed}" for seed in comparison.seeds)], table)


def _pipes(header: Sequence[str], table: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(map(_escaped, row))} |" for row in (header, ruler, *table)]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
