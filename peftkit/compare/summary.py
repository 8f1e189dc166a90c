"""What the runs of a suite come to: a summary of every variant, and what has to be known to compare them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from peftkit.compare.statistics import Estimate, best_first, estimate, not_distinguishable
from peftkit.errors import RunError
from peftkit.results import RunResult

BASE_MODEL = "base model"
"""Name of the circumstance that says which one it was."""


@dataclass(frozen=True)
class Score:
    """What variants are compared by."""

    split: str
    metric: str
    greater_is_better: bool

    def of(self, result: RunResult) -> float:
        """The score of one run.

        Raises:
            RunError: the run has no such score.
        """
        try:
            return result.splits[self.split].metrics[self.metric]
        except KeyError as problem:
            have = ", ".join(f"{name} on {split}" for split, found in result.splits.items() for name in found.metrics)
            raise RunError(
                f"run {result.name!r} has no {self.metric!r} on {self.split!r} (it has: {have}); "
                "choose one with  metric  and  split  in the suite"
            ) from problem


@dataclass(frozen=True)
class Summary:
    """One variant over its finished runs.

    Args:
        results: by seed, in the order of the suite; at least one.
        scores: by seed.
    """

    label: str
    results: Mapping[int, RunResult]
    scores: Mapping[int, float]

    @cached_property
    def score(self) -> Estimate:
        """Mean over seeds."""
        return estimate(list(self.scores.values()))

    @property
    def first(self) -> RunResult:
        """The run that stands for what all seeds have in common."""
        return next(iter(self.results.values()))

    @property
    def method(self) -> str:
        """Tuning method, and how the base is stored if it is quantized: lora on nf4."""
        quantization = _name(self.first.recipe.get("quantization"))
        return f"{_name(self.first.recipe['method'])}{f' on {quantization}' if quantization else ''}"

    @property
    def adapter_parameters(self) -> int:
        """Trainable parameters without the task's new head."""
        return self.first.model.trainable_parameters - self.first.model.head_parameters

    @property
    def saved_bytes(self) -> int:
        """Size of the saved weights; the largest over seeds."""
        return max(result.cost.saved_bytes for result in self.results.values())

    @property
    def peak_memory_bytes(self) -> int:
        """The largest over seeds."""
        return max(result.cost.peak_memory_bytes for result in self.results.values())

    @property
    def train_seconds_per_example(self) -> float | None:
        """Median over seeds of the time of a training step over its examples; evaluation is left out."""
        return _median(1 / rate for result in self.results.values() if (rate := result.cost.examples_per_second) > 0)

    @property
    def inference_seconds_per_example(self) -> float | None:
        """Median over seeds of the time of the final scoring over its examples, all scored splits together."""
        return _median(
            seconds for result in self.results.values() if (seconds := inference_seconds(result)) is not None
        )

    @property
    def steps(self) -> tuple[int, ...]:
        """Optimizer steps, each number once."""
        return tuple(sorted({result.cost.steps for result in self.results.values()}))

    @property
    def epochs(self) -> float:
        """Passes over the training rows; the most over seeds."""
        return max((point.epoch for result in self.results.values() for point in result.history), default=0.0)

    @property
    def training(self) -> Mapping[str, Any]:
        """The section of the recipe."""
        found: Mapping[str, Any] = self.first.recipe["training"]
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the runs warn of, with their seeds."""
        found: dict[str, list[int]] = {}
        for seed, result in self.results.items():
            for warning in result.warnings:
                found.setdefault(warning, []).append(seed)
        return tuple(f"{self.label}, {_seeds(seeds)}: {text}" for text, seeds in found.items())


@dataclass(frozen=True)
class Comparison:
    """Everything that is shown of a suite.

    Args:
        labels: of all variants, in the order of the suite.
        summaries: of variants with a finished run, best mean first.
        failures: reasons by label and seed.
        missing: seeds that have neither finished nor failed, by label.
        varied: circumstances that differ on purpose.
    """

    name: str
    description: str
    score: Score
    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    summaries: tuple[Summary, ...]
    failures: Mapping[str, Mapping[int, str]]
    missing: Mapping[str, tuple[int, ...]]
    varied: frozenset[str] = frozenset()

    @cached_property
    def top(self) -> tuple[str, ...]:
        """Labels that cannot be told apart from the best mean, that one first."""
        return not_distinguishable(
            {summary.label: summary.score for summary in self.summaries},
            greater_is_better=self.score.greater_is_better,
        )

    @property
    def without_result(self) -> tuple[str, ...]:
        """Labels of which no run is finished."""
        have = {summary.label for summary in self.summaries}
        return tuple(label for label in self.labels if label not in have)

    @property
    def results(self) -> list[tuple[str, RunResult]]:
        """Every finished run with its label."""
        return [(summary.label, result) for summary in self.summaries for result in summary.results.values()]

    @property
    def differences(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """What should be equal in all runs and is not: by its name, the labels by value."""
        different = {name: values for name, values in self._circumstances.items() if len(values) > 1}
        return {name: values for name, values in different.items() if name not in self.varied}

    @property
    def shared(self) -> dict[str, str]:
        """What is equal in all runs: data, base model, machine, versions."""
        return {name: next(iter(values)) for name, values in self._circumstances.items() if len(values) == 1}

    @cached_property
    def _circumstances(self) -> dict[str, dict[str, tuple[str, ...]]]:
        found: dict[str, dict[str, list[str]]] = {}
        for label, result in self.results:
            for name, value in _circumstances(result).items():
                labels = found.setdefault(name, {}).setdefault(value, [])
                labels += [label] if label not in labels else []
        return {name: {value: tuple(labels) for value, labels in values.items()} for name, values in found.items()}


def summarize(results: Mapping[str, Mapping[int, RunResult]], score: Score) -> tuple[Summary, ...]:
    """Variants that have a finished run, the best mean first."""
    found = {
        label: Summary(label, runs, {seed: score.of(result) for seed, result in runs.items()})
        for label, runs in results.items()
        if runs
    }
    estimates = {label: summary.score for label, summary in found.items()}
    return tuple(found[label] for label in best_first(estimates, greater_is_better=score.greater_is_better))


def inference_seconds(result: RunResult) -> float | None:
    """Seconds per example of the final scoring of one run, all scored splits together; None if not measured."""
    timed = {split: seconds for split, found in result.splits.items() if (seconds := found.seconds_per_example)}
    rows = {split: result.data.rows[split] for split in timed if split in result.data.rows}
    return sum(timed[split] * rows[split] for split in rows) / sum(rows.values()) if rows else None


def _circumstances(result: RunResult) -> dict[str, str]:
    """What a fair comparison keeps equal. Paths of this machine are left out."""
    artifact = result.model.artifact
    locator = Path(artifact.locator).name if artifact.origin == "local" else artifact.locator
    known = [locator, artifact.revision, artifact.sha256[:12] if artifact.sha256 else None]
    rows = {f"rows of {split}": f"{number:,}" for split, number in result.data.rows.items()}
    data = {f"data of {split} (SHA-256)": digest[:12] for split, digest in result.data.fingerprint.items()}
    environment = {name.replace("_", " "): value for name, value in result.environment.items()}
    return {
        BASE_MODEL: " ".join(word for word in known if word),
        **rows,
        **data,
        "peftkit": result.peftkit_version,
        **environment,
    }


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def _name(part: Any) -> str | None:
    return str(part["name"]) if isinstance(part, Mapping) else part


def _seeds(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
