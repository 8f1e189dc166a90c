"""From the folders of a suite to what is shown of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from peftkit.compare.data_files import comparison_csv, comparison_json, runs_csv
from peftkit.compare.failures import read_reason
from peftkit.compare.page import render_page
from peftkit.compare.running import State, state
from peftkit.compare.suite import PlannedRun, Suite
from peftkit.compare.summary import Comparison, Score, summarize
from peftkit.compare.table import markdown
from peftkit.errors import RunError
from peftkit.recipe import Recipe
from peftkit.report.scores import chosen_by
from peftkit.results import RUN_FILE, RunResult

FILES = {
    "comparison.md": markdown,
    "comparison.csv": comparison_csv,
    "runs.csv": runs_csv,
    "comparison.json": comparison_json,
    "index.html": render_page,
}


def gather(suite: Suite, runs: Sequence[PlannedRun]) -> Comparison:
    """Everything that is known of a suite by now.

    Raises:
        RunError: no run is finished, or the finished ones have no score in common.
    """
    labels = tuple(dict.fromkeys(run.label for run in runs))
    results: dict[str, dict[int, RunResult]] = {label: {} for label in labels}
    failures: dict[str, dict[int, str]] = {}
    missing: dict[str, tuple[int, ...]] = {}
    for run in runs:
        found = state(run)
        if found is State.FINISHED:
            results[run.label][run.seed] = RunResult.read(run.folder)
        elif found is State.FAILED:
            failures.setdefault(run.label, {})[run.seed] = str(read_reason(run.failure_file))
        else:
            missing[run.label] = (*missing.get(run.label, ()), run.seed)
    if not any(results.values()):
        reasons = [
            f"{label} seed {seed}: {reason}" for label, found in failures.items() for seed, reason in found.items()
        ]
        raise RunError("\n  ".join(["no run of the suite is finished, so there is nothing to compare", *reasons]))
    score = headline(suite, results)
    return Comparison(
        name=suite.name,
        description=suite.description,
        score=score,
        labels=labels,
        seeds=suite.seeds,
        summaries=summarize(results, score),
        failures=failures,
        missing=missing,
    )


def headline(suite: Suite, results: Mapping[str, Mapping[int, RunResult]]) -> Score:
    """The score that variants are compared by: what the suite says, else the one that chose the weights, on test.

    Raises:
        RunError: it differs between variants.
    """
    done = [(label, result) for label, runs in results.items() for result in runs.values()]
    chosen = {chosen_by(result)[1]: label for label, result in done}
    if suite.metric is None and len(chosen) > 1:
        listed = ", ".join(f"{metric} of {label!r}" for metric, label in chosen.items())
        raise RunError(f"the weights of the variants were chosen by different scores ({listed}); name one with  metric")
    metric = suite.metric or next(iter(chosen))
    splits = [split for split in done[0][1].splits if all(split in result.splits for _, result in done)]
    split = suite.split or next((name for name in ("test", "validation", *splits) if name in splits), None)
    if split is None:
        raise RunError("no split was scored by all runs; give them data with the same splits")
    recipe = Recipe.from_values(done[0][1].recipe, origin=RUN_FILE)
    better = next((part.greater_is_better for part in recipe.metrics if part.score_name == metric), True)
    return Score(split, metric, better)


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write every form of the comparison into the folder of the suite; each file appears whole or not at all."""
    written = []
    for name, render in FILES.items():
        staged = out / f".{name}.part"
        staged.write_text(render(comparison), "utf-8")
        written.append(staged.replace(out / name))
    return written
