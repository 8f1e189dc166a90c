"""What the runs of one variant come to: means over seeds with intervals, and costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftkit.errors import RunError
from peftkit.results import RunResult

LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """One variant over its seeds.

    Args:
        scores: by seed, in order.
        low, high: ends of the interval of the mean, Student's t over seeds; None with fewer than two runs.
        trainable_parameters, head_parameters, total_parameters: of the model; the head is part of the first.
        saved_bytes: size of what was saved.
        peak_memory_bytes: largest over seeds.
        train_seconds, inference_seconds: per example, mean over seeds; None where not measured.
        steps: optimizer steps.
        learning_rate: peak.
    """

    label: str
    method: str
    scores: Mapping[int, float]
    mean: float
    low: float | None
    high: float | None
    trainable_parameters: int
    head_parameters: int
    total_parameters: int
    saved_bytes: int
    peak_memory_bytes: int
    train_seconds: float | None
    inference_seconds: float | None
    steps: int
    learning_rate: float


def summarize(label: str, results: Sequence[RunResult], *, split: str, metric: str) -> Summary:
    """The runs of one variant in numbers.

    Raises:
        RunError: a run has no such score.
    """
    scores = {int(result.recipe["seed"]): _score(result, split=split, metric=metric) for result in results}
    mean = statistics.fmean(scores.values())
    low, high = mean_interval(list(scores.values())) or (None, None)
    first = results[0]
    inference = [seconds for result in results if (seconds := result.splits[split].seconds_per_example)]
    rates = [result.cost.examples_per_second for result in results if result.cost.examples_per_second]
    return Summary(
        label=label,
        method=_method(first),
        scores=scores,
        mean=mean,
        low=low,
        high=high,
        trainable_parameters=first.model.trainable_parameters,
        head_parameters=first.model.head_parameters,
        total_parameters=first.model.total_parameters,
        saved_bytes=max(result.cost.saved_bytes for result in results),
        peak_memory_bytes=max(result.cost.peak_memory_bytes for result in results),
        train_seconds=statistics.fmean(1 / rate for rate in rates) if rates else None,
        inference_seconds=statistics.fmean(inference) if inference else None,
        steps=first.cost.steps,
        learning_rate=float(first.recipe["training"]["learning_rate"]),
    )


def mean_interval(values: Sequence[float], *, level: float = LEVEL) -> tuple[float, float] | None:
    """Interval of the mean of a few values by Student's t; None for fewer than two."""
    if len(values) < 2:
        return None
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half


def indistinguishable(summaries: Sequence[Summary], *, greater_is_better: bool) -> set[str]:
    """Labels whose interval overlaps that of the best mean; without intervals nobody can be told apart."""
    if not summaries:
        return set()
    sign = 1 if greater_is_better else -1
    best = max(summaries, key=lambda summary: sign * summary.mean)
    if best.low is None or best.high is None:
        return {summary.label for summary in summaries}
    return {
        summary.label
        for summary in summaries
        if summary.low is None or summary.high is None or (summary.low <= best.high and best.low <= summary.high)
    }


def differing_data(results: Mapping[str, Sequence[RunResult]]) -> list[str]:
    """Labels whose runs saw other rows than most did; empty if all saw the same."""
    seen: dict[str, set[str]] = {}
    for label, runs in results.items():
        for run in runs:
            seen.setdefault(str(sorted(run.data.fingerprint.items())), set()).add(label)
    if len(seen) < 2:
        return []
    usual = max(seen, key=lambda key: len(seen[key]))
    return sorted({label for key, labels in seen.items() if key != usual for label in labels})


def _score(result: RunResult, *, split: str, metric: str) -> float:
    try:
        return result.splits[split].metrics[metric]
    except KeyError as problem:
        have = ", ".join(f"{name} of {part}" for part, record in result.splits.items() for name in record.metrics)
        raise RunError(f"run {result.name!r} has no score {metric!r} of {split!r} (it has: {have})") from problem


def _method(result: RunResult) -> str:
    method, quantization = result.recipe["method"], result.recipe.get("quantization")
    name = method["name"] if isinstance(method, Mapping) else str(method)
    stored = quantization["name"] if isinstance(quantization, Mapping) else quantization
    return f"{name} on {stored}" if stored else str(name)
