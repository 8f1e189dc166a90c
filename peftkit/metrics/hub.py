"""Metrics of the evaluate library, from the hub."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.errors import ArtifactError, CapabilityError, DataError, RecipeError
from peftkit.metrics import Metric, Rows, metrics

if TYPE_CHECKING:
    import evaluate
    import numpy as np

_OWNER = "evaluate-metric"


@metrics.register("hub")
class HubMetric(Metric):
    """A metric of the evaluate library, such as hub:rouge; its code comes from the hub and is run.

    Only the library's own metrics (https://huggingface.co/evaluate-metric) can be named: a recipe must not be able to
    run code of anybody else.
    """

    shorthand: ClassVar[str | None] = "metric"

    metric: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Its name there: rouge, sacrebleu, squad, ..."""
    options: Mapping[str, Any] = {}
    """Further arguments of its `compute`: {use_stemmer: true}."""
    score: str | None = None
    """Which of its results selects checkpoints; none: the only one, or the one with the metric's name."""
    lower_is_better: bool = False
    """Whether the best checkpoint is that with the lowest score."""

    @property
    def score_name(self) -> str:
        """The score that was asked for, or the name on the hub."""
        return self.score or self.metric

    @property
    def greater_is_better(self) -> bool:
        """As the recipe says; the library does not know."""
        return not self.lower_is_better

    def compute(self, predictions: Rows, references: Rows) -> dict[str, float]:
        """See `Metric.compute`. Results that are no single number, such as one per row, are left out.

        Raises:
            CapabilityError: the hub does not answer, or a package that the metric needs is missing.
            ArtifactError: the library has no such metric.
            DataError: the metric refuses such rows.
        """
        try:
            found = self.module().compute(predictions=predictions, references=references, **self.options)
        except (TypeError, ValueError) as problem:
            raise DataError(f"the metric 'hub:{self.metric}' refuses its input: {problem}") from problem
        numbers = {name: float(value) for name, value in found.items() if _is_number(value)}
        chosen = self.score or (next(iter(numbers)) if len(numbers) == 1 else self.metric)
        if chosen not in numbers:
            raise RecipeError(
                f"the metric 'hub:{self.metric}' has no result {chosen!r} "
                f"(it has: {', '.join(numbers) or 'no numbers'}); "
                f"write it as  {{name: hub, metric: {self.metric}, score: ...}}  with one of them"
            )
        return {self.score_name: numbers.pop(chosen), **numbers}

    def resampled(self, predictions: np.ndarray, references: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
        """Nothing: some of these metrics run a model over every row."""
        return {}

    def module(self) -> evaluate.Metric:
        """The library's own module.

        Raises:
            CapabilityError: the hub does not answer, or a package that the metric needs is missing.
            ArtifactError: the library has no such metric.
        """
        return _load(self.metric)


def _is_number(value: Any) -> bool:
    import numbers

    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@lru_cache
def _load(name: str) -> evaluate.Metric:
    import evaluate
    from datasets import DownloadConfig

    from peftkit.artifacts import hub_reachable

    path = f"{_OWNER}/{name}"
    if Path(path).exists():
        # evaluate.load prefers it to the hub, and would run whatever code is in it.
        raise CapabilityError(
            f"the metric 'hub:{name}' is hidden by the local folder '{Path(path).absolute()}'; "
            "rename that folder or work in another one"
        )
    online = hub_reachable()
    try:
        # Offline, evaluate still finds what it has loaded before.
        return evaluate.load(path, download_config=DownloadConfig(local_files_only=not online))
    except ImportError as problem:
        raise CapabilityError(f"the metric 'hub:{name}' cannot be used: {problem}") from problem
    except (FileNotFoundError, ConnectionError) as problem:
        if online:
            raise ArtifactError(
                f"the hub has no metric {name!r} in {_OWNER}; see https://huggingface.co/{_OWNER} for those it has"
            ) from problem
        offline = ", ".join(known for known in metrics.names() if known != HubMetric.name)
        raise CapabilityError(
            f"the metric 'hub:{name}' comes from the hub, which cannot be reached, and is not in the cache; "
            f"without a network there are: {offline}"
        ) from problem
