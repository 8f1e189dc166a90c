"""What is shown of a finished pipeline: its stages, and what each of them adds to the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from peftkit.compare.outcome import gather, write
from peftkit.compare.page import environment
from peftkit.compare.statistics import Estimate
from peftkit.compare.suite import PlannedRun, Suite
from peftkit.compare.summary import BASE_MODEL, Comparison
from peftkit.pipeline import Pipeline
from peftkit.report import REPORT_FILE, wording
from peftkit.results import PipelineResult
from peftkit.stages.nodes import ALL, Node

if TYPE_CHECKING:
    from rich.table import Table

COMPARISON_DIR = "comparison"
_INTERVAL = "95 % interval"
_LAST = "last step"
"""Stands where no rows chose the weights."""


@dataclass(frozen=True)
class Addition:
    """What the target loses where stages are left out.

    Args:
        left_out: in words.
        score: mean over seeds without them, with its interval where there are several.
        added: score of all stages minus `score`; positive means better where greater is better.
    """

    left_out: str
    score: Estimate
    added: float


def compared(pipeline: Pipeline, found: Mapping[str, Mapping[int, Node]]) -> Comparison:
    """The target after every chain that was run, as variants of one comparison.

    Raises:
        RunError: they have no score in common.
    """
    runs = [
        PlannedRun(label, seed, node.recipe(pipeline), node.folder)
        for label, nodes in found.items()
        for seed, node in nodes.items()
    ]
    suite = Suite(
        name=pipeline.name or "pipeline",
        description=f"{pipeline.target.name} with and without the stages before it. {pipeline.description}".strip(),
        recipe="recipe.yaml",
        seeds=pipeline.seeds,
        variants={label: {} for label in found},
    )
    return replace(gather(suite, runs), varied=frozenset({BASE_MODEL}))


def additions(comparison: Comparison, pipeline: Pipeline) -> list[Addition]:
    """What each stage adds, in the order of the stages; last what all add together."""
    scores = {summary.label: summary.score for summary in comparison.summaries}
    left_out = {f"without_{stage.name}": stage.name for stage in pipeline.stages[:-1]}
    left_out[f"only_{pipeline.target.name}"] = "all before it" if len(pipeline.stages) > 2 else pipeline.stages[0].name
    return [
        Addition(words, scores[label], scores[ALL].mean - scores[label].mean)
        for label, words in left_out.items()
        if label in scores
    ]


def write_pages(pipeline: Pipeline, comparison: Comparison, result: PipelineResult, run_dir: Path) -> None:
    """Write `report.html`, and the comparison in all its forms."""
    folder = run_dir / COMPARISON_DIR
    folder.mkdir(exist_ok=True)
    write(comparison, folder)
    page = environment("stages").get_template("pipeline.html.jinja")
    text = page.render(
        pipeline=pipeline,
        stages=result.stages,
        score=comparison.score,
        metric=wording.plain_name(comparison.score.metric),
        best=next(summary for summary in comparison.summaries if summary.label == ALL),
        additions=additions(comparison, pipeline),
        duration=wording.duration,
        last=_LAST,
        nothing=wording.NOTHING,
        comparison=f"{COMPARISON_DIR}/index.html",
        report=REPORT_FILE,
    )
    staged = run_dir / f".{REPORT_FILE}.part"
    staged.write_text(text, "utf-8")
    staged.replace(run_dir / REPORT_FILE)


def tables(pipeline: Pipeline, comparison: Comparison, result: PipelineResult) -> list[Table]:
    """The stages, and what each of them adds, for the terminal."""
    from rich.table import Table

    stages = Table("stage", "task", "method", "starts from", "chosen by", "", title=result.name, title_justify="left")
    for record in result.stages:
        chosen = (_LAST, wording.NOTHING)
        if record.chosen_score is not None:
            chosen = (record.best_metric, wording.number(record.chosen_score))
        stages.add_row(record.name, record.task, record.method, record.start, *chosen)
    name = f"{comparison.score.metric} on {comparison.score.split}"
    table = Table("left out", name, _INTERVAL, "it adds", title=f"What the stages add to {pipeline.target.name}")
    table.title_justify = "left"
    everything = next(summary.score for summary in comparison.summaries if summary.label == ALL)
    table.add_row("nothing", wording.number(everything.mean), _range(everything), "")
    for addition in additions(comparison, pipeline):
        score = addition.score
        table.add_row(addition.left_out, wording.number(score.mean), _range(score), f"{addition.added:+.4f}")
    return [stages, table] if pipeline.compare else [stages]


def _range(score: Estimate) -> str:
    interval = score.interval
    return wording.NOTHING if interval is None else f"{wording.number(interval.low)} to {wording.number(interval.high)}"
