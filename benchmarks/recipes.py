"""What do the shipped recipes score, and how much does the seed matter?

    python benchmarks/recipes.py sst2_lora --seeds 0 1 2
    python benchmarks/recipes.py stsb_lora --seeds 0 --set 'data={name: files, train: ..., test: ...}'
    python benchmarks/recipes.py sst2_lora --runs runs/seed0 runs/seed1      # runs that are there already

Runs a recipe once per seed and writes benchmarks/results/NAME.json: scores by split, mean and standard deviation over
seeds, bootstrap intervals of each run, both also before training where the recipe asks for them, times, versions. No
row of the data and no path is written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from peftkit.recipe import Recipe
from peftkit.results import RunResult
from peftkit.training import RunOptions, run

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run the recipe that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="name of a file in recipes/, without .yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--runs", type=Path, nargs="+", help="finished run folders to summarize instead")
    parser.add_argument("--label", default="", help="added to the result's name, for other data than the recipe's own")
    given = parser.parse_args()
    if given.runs:
        results = [RunResult.read(folder) for folder in given.runs]
    else:
        results = [one_run(given.recipe, [*given.settings, f"seed={seed}"]) for seed in given.seeds]
    summary = summarize(results)
    name = given.recipe + (f"_{given.label}" if given.label else "")
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    for split, scores in summary["scores"].items():
        for metric, score in scores.items():
            print(f"{name} {split} {metric}: {score['mean']:.4f} ± {score['standard_deviation']:.4f} {score['values']}")


def one_run(name: str, settings: list[str]) -> RunResult:
    """One run of a recipe in a folder that is thrown away."""
    recipe = Recipe.from_yaml(ROOT / "recipes" / f"{name}.yaml", settings=settings)
    with tempfile.TemporaryDirectory() as folder:
        return run(recipe, Path(folder) / "run", options=RunOptions(show_progress=False))


def summarize(results: list[RunResult]) -> dict[str, Any]:
    """Scores over seeds, without any row of the data."""
    first = results[0]
    alike = {json.dumps(dict(result.recipe) | {"seed": 0, "name": ""}, sort_keys=True) for result in results}
    if len(alike) > 1:
        raise SystemExit("these runs differ in more than the seed; summarize like with like")
    return {
        "recipe": first.name,
        "seeds": [result.recipe["seed"] for result in results],
        "method": first.recipe["method"],
        "training": first.recipe["training"],
        "rows": dict(first.data.rows),
        "data_fingerprint": dict(first.data.fingerprint),
        "model": _model(first),
        "trainable_parameters": first.model.trainable_parameters,
        "scores": {
            split: {metric: _over_seeds(results, split, metric) for metric in record.metrics}
            for split, record in first.splits.items()
        },
        "train_seconds": [round(result.cost.train_seconds, 1) for result in results],
        "peak_memory_bytes": [result.cost.peak_memory_bytes for result in results],
        "environment": [dict(result.environment) for result in results],
        "peftkit": first.peftkit_version,
    }


def _model(result: RunResult) -> dict[str, Any]:
    artifact = result.model.artifact.model_dump(mode="json")
    is_local = artifact["origin"] == "local"  # its path means nothing elsewhere
    return artifact | {"locator": Path(artifact["locator"]).name} if is_local else artifact


def _over_seeds(results: list[RunResult], split: str, metric: str) -> dict[str, Any]:
    values = [result.metrics[split][metric] for result in results]
    intervals = [result.splits[split].intervals.get(metric) for result in results]
    untrained = [result.splits[split].before.get(metric) for result in results]
    intervals_before = [result.splits[split].before_intervals.get(metric) for result in results]
    before = {
        "before": [score for score in untrained if score is not None],
        "before_bootstrap_95": [[interval.low, interval.high] for interval in intervals_before if interval],
    }
    return {
        "values": values,
        "mean": statistics.fmean(values),
        "standard_deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        "bootstrap_95": [[interval.low, interval.high] for interval in intervals if interval],
        **{name: scores for name, scores in before.items() if scores},
    }


if __name__ == "__main__":
    main()
