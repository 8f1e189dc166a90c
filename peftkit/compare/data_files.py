"""The comparison for other programs: CSV and JSON, plain numbers in plain units, no path of this machine."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from peftkit.compare.statistics import LEVEL
from peftkit.compare.summary import Comparison, Summary, inference_seconds
from peftkit.results import RunResult

FORMAT_VERSION = 1
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][^\s\\/'\":,;]+)+[\\/]([^\s\\/'\":,;]+)")


def without_paths(text: str) -> str:
    """`text` with every absolute path cut down to its last part."""
    return _PATH.sub(lambda found: found[0] if _inside_a_word(text, found.start()) else found[1], text)


def _inside_a_word(text: str, start: int) -> bool:
    """Whether a slash belongs to something like and/or or https://host, which are no absolute paths."""
    return start > 0 and (text[start - 1].isalnum() or text[start - 1] in "._-:/")


def comparison_csv(comparison: Comparison) -> str:
    """One line per variant, the best first; those without a finished run last."""
    rows = [_variant(summary, comparison) for summary in comparison.summaries]
    rows += [
        {"variant": label, "finished": 0, "failed": len(comparison.failures.get(label, {}))}
        for label in comparison.without_result
    ]
    return _csv([{key: _flat(value) for key, value in row.items()} for row in rows])


def runs_csv(comparison: Comparison) -> str:
    """One line per run, whether it is finished, failed or missing."""
    return _csv([{key: _flat(value) for key, value in run.items()} for run in _runs(comparison)])


def comparison_json(comparison: Comparison) -> str:
    """Everything that the page shows."""
    score = comparison.score
    content = {
        "format_version": FORMAT_VERSION,
        "name": comparison.name,
        "description": comparison.description,
        "split": score.split,
        "metric": score.metric,
        "greater_is_better": score.greater_is_better,
        "interval": f"{100 * LEVEL:g} % of the mean over seeds, Student's t",
        "seeds": comparison.seeds,
        "not_distinguishable_from_best": comparison.top,
        "variants": [_variant(summary, comparison) | _settings(summary) for summary in comparison.summaries],
        "without_result": comparison.without_result,
        "runs": _runs(comparison),
        "same_in_all_runs": comparison.shared,
        "different_between_runs": comparison.differences,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _variant(summary: Summary, comparison: Comparison) -> dict[str, Any]:
    model, interval = summary.first.model, summary.score.interval
    return {
        "variant": summary.label,
        "method": summary.method,
        "mean": summary.score.mean,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "standard_deviation": summary.score.deviation,
        "not_distinguishable_from_best": summary.label in comparison.top,
        "scores": {str(seed): value for seed, value in summary.scores.items()},
        "finished": len(summary.results),
        "failed": len(comparison.failures.get(summary.label, {})),
        "trainable_parameters": model.trainable_parameters,
        "adapter_parameters": summary.adapter_parameters,
        "head_parameters": model.head_parameters,
        "total_parameters": model.total_parameters,
        "saved_bytes": summary.saved_bytes,
        "peak_memory_bytes": summary.peak_memory_bytes,
        "train_seconds_per_example": summary.train_seconds_per_example,
        "inference_seconds_per_example": summary.inference_seconds_per_example,
        "steps": summary.steps,
        "epochs": summary.epochs,
        "learning_rate": summary.training.get("learning_rate"),
        "stored_as": model.dtype,
    }


def _settings(summary: Summary) -> dict[str, Any]:
    recipe = summary.first.recipe
    return {name: recipe.get(name) for name in ("method", "quantization", "training")}


def _runs(comparison: Comparison) -> list[dict[str, Any]]:
    """Of every variant in the order of the suite, by seed."""
    finished = {summary.label: summary.results for summary in comparison.summaries}
    return [
        {"variant": label, "seed": seed, **_run(comparison, label, seed, finished.get(label, {}).get(seed))}
        for label in comparison.labels
        for seed in comparison.seeds
    ]


def _run(comparison: Comparison, label: str, seed: int, result: RunResult | None) -> dict[str, Any]:
    reason = comparison.failures.get(label, {}).get(seed)
    facts: dict[str, Any] = {"state": "finished" if result else "missing" if reason is None else "failed"}
    if result is not None:
        cost = result.cost
        facts |= {
            f"{split}_{metric}": value for split, found in result.metrics.items() for metric, value in found.items()
        }
        facts |= {
            "trainable_parameters": result.model.trainable_parameters,
            "saved_bytes": cost.saved_bytes,
            "peak_memory_bytes": cost.peak_memory_bytes,
            "train_seconds": cost.train_seconds,
            "train_seconds_per_example": 1 / cost.examples_per_second if cost.examples_per_second > 0 else None,
            "inference_seconds_per_example": inference_seconds(result),
            "steps": cost.steps,
            "best_step": result.best_step,
            "started": result.started,
            "warnings": list(result.warnings),
        }
    return facts | {"reason": without_paths(reason) if reason else None}


def _flat(value: Any) -> Any:
    """A value that fits into one cell."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}:{item!r}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(map(str, value))
    return value


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
