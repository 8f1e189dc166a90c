"""From the folders of a suite to what is shown of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from peftkit.compare.page import render_page
from peftkit.compare.running import failure, finished
from peftkit.compare.statistics import differing_data, summarize
from peftkit.compare.suite import PlannedRun, Suite
from peftkit.compare.table import Comparison, csv_table, json_text, markdown
from peftkit.errors import RunError
from peftkit.recipe import Recipe
from peftkit.results import RUN_FILE, RunResult

FILES = {
    "comparison.md": markdown,
    "comparison.csv": csv_table,
    "comparison.json": json_text,
    "index.html": render_page,
}


def gather(suite: Suite, runs: Sequence[PlannedRun]) -> Comparison:
    """Everything that is known of a suite by now.

    Raises:
        RunError: no run is finished.
    """
    results = finished(runs)
    done = [result for found in results.values() for result in found]
    failures = _failures(runs)
    if not done:
        reasons = [
            f"{label} seed {seed}: {reason}" for label, seeds in failures.items() for seed, reason in seeds.items()
        ]
        raise RunError("\n  ".join(["no run of the suite is finished, so there is nothing to compare", *reasons]))
    first = done[0]
    split = suite.split or ("test" if "test" in first.splits else next(iter(first.splits)))
    metric = suite.metric or str(first.recipe["training"]["best_metric"])
    recipe = Recipe.from_values(first.recipe, origin=RUN_FILE)
    better = next((part.greater_is_better for part in recipe.metrics if part.score_name == metric), True)
    summaries = [summarize(label, found, split=split, metric=metric) for label, found in results.items() if found]
    return Comparison(
        name=suite.name,
        description=suite.description,
        split=split,
        metric=metric,
        greater_is_better=better,
        seeds=suite.seeds,
        summaries=tuple(sorted(summaries, key=lambda summary: summary.mean, reverse=better)),
        failures=failures,
        missing=_missing(suite, results, failures),
        differing_data=tuple(differing_data(results)),
        environment=_common(done),
    )


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write every form of the comparison into the folder of the suite."""
    written = []
    for name, render in FILES.items():
        path = out / name
        path.write_text(render(comparison), "utf-8")
        written.append(path)
    return written


def _failures(runs: Sequence[PlannedRun]) -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = {}
    for run in runs:
        if (run.folder / RUN_FILE).is_file():
            continue
        if reason := failure(run):
            found.setdefault(run.label, {})[run.seed] = reason
    return found


def _missing(
    suite: Suite, results: Mapping[str, Sequence[RunResult]], failures: Mapping[str, Mapping[int, str]]
) -> dict[str, int]:
    counts = {label: len(suite.seeds) - len(found) - len(failures.get(label, {})) for label, found in results.items()}
    return {label: number for label, number in counts.items() if number > 0}


def _common(results: Sequence[RunResult]) -> dict[str, str]:
    """Environment and sizes of the runs; values that differ stand side by side."""
    names = list(dict.fromkeys(name for result in results for name in result.environment))
    values = {name: {result.environment.get(name, "-") for result in results} for name in names}
    values["peftkit"] = {result.peftkit_version for result in results}
    values["base model"] = {result.model.artifact.locator for result in results}
    values["rows"] = {", ".join(f"{split} {n:,}" for split, n in result.data.rows.items()) for result in results}
    values["optimizer steps"] = {f"{result.cost.steps:,}" for result in results}
    return {name: " / ".join(sorted(found)) for name, found in values.items()}
