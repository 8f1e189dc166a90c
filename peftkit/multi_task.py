"""A recipe of several tasks that are learnt together: on one base, with one adapter or with an adapter each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from peftkit.recipe import (
    NamedAugmentation,
    NamedLoss,
    NamedMethod,
    NamedMetric,
    NamedModel,
    NamedQuantizer,
    NamedSource,
    NamedTask,
    Recipe,
    RecipeFile,
    TrainingOptions,
    problem_at,
)
from peftkit.recipe_section import Section

TASKS_KEY = "tasks"
"""A recipe file with this key has several tasks."""
MEAN = "mean"
"""The mean over tasks of the metric that would choose the weights of each alone."""
SEPARATOR = "/"
"""Between a task and its metric."""
_NAME = re.compile(r"\w[\w-]*")


class Sampling(Section):
    """How often each task is trained on."""

    name: Literal["proportional", "temperature", "equal"] = "proportional"
    """proportional: by its training rows; temperature: by their power 1 / temperature, so that small tasks come more
    often; equal: all alike (Raffel et al. 2020, arXiv:1910.10683, section 3.5.2)."""
    temperature: float | None = Field(None, ge=1)
    """Of name temperature: 1 is proportional, a large one nearly equal; usual are 2 to 5."""
    limit: int | None = Field(None, ge=1)
    """A task counts as no more rows than this, so that a very large one does not crowd out the others."""

    @model_validator(mode="after")
    def _temperature_where_it_counts(self) -> Sampling:
        if (self.name == "temperature") != (self.temperature is not None):
            raise ValueError(
                "temperature belongs to  {name: temperature, temperature: 2}: "
                + ("say which" if self.temperature is None else f"remove it, or the name {self.name!r}")
            )
        if self.name == "equal" and self.limit is not None:
            raise ValueError("limit has no effect where all tasks are alike; remove it")
        return self

    def rates(self, rows: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
        """Share of each task in the micro-batches, by name; together 1."""
        exponent = 0.0 if self.name == "equal" else 1 / (self.temperature or 1.0)
        limit = self.limit or max(rows.values())
        sizes = {name: weights[name] * min(count, limit) ** exponent for name, count in rows.items()}
        return {name: size / sum(sizes.values()) for name, size in sizes.items()}


class JointTask(Section):
    """One of the tasks: what a recipe says of it alone."""

    weight: float = Field(1.0, gt=0)
    """How often it is trained on is multiplied by this, before the shares of all are made to add up to 1."""
    task: NamedTask
    """What is learnt."""
    data: NamedSource
    """Where rows come from."""
    augmentations: tuple[NamedAugmentation, ...] = ()
    """Rewritten copies of the training rows that are added to them."""
    loss: NamedLoss | None = None
    """What is minimised; none: the task's own."""
    metrics: tuple[NamedMetric, ...] = ()
    """How predictions are scored; none: the task's own."""


def _sampling_by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class MultiTask(RecipeFile):
    """Several tasks that share a base: what a recipe says once, and what it says of each task."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Seeds every random draw: new weights, shuffling, dropout."""
    model: NamedModel
    """The base model: its id, or a mapping."""
    tasks: Mapping[str, JointTask] = Field(min_length=1)
    """What is learnt, by a name that is also that of its folder: letters, digits, _ and -."""
    sampling: Annotated[Sampling, BeforeValidator(_sampling_by_name)] = Sampling()
    """How often each task is trained on: a name, or a mapping."""
    adapters: Literal["shared", "separate"] = "shared"
    """shared: all tasks train the same adapter, each has a head of its own; separate: each has an adapter of its own
    too, only the frozen base is shared."""
    method: NamedMethod
    """Which weights train."""
    quantization: NamedQuantizer | None = None
    """How the frozen weights are stored; none: in `model.dtype`."""
    training: TrainingOptions = TrainingOptions()
    """How the weights are trained. An epoch has as many micro-batches as one pass over the rows of all tasks;
    `best_metric` is mean, over tasks, or the metric of one of them, such as rte/accuracy."""

    @model_validator(mode="after")
    def _tasks_fit(self) -> MultiTask:
        for name in self.tasks:
            if not _NAME.fullmatch(name) or name == MEAN:
                why = "names the mean of all tasks" if name == MEAN else "cannot name a folder"
                raise problem_at(("tasks", name), f"{name!r} {why}; use other letters, digits, _ and -", value=name)
        self._check_method()
        self._check_batches()
        self._check_best_metric()
        for name, part in self.tasks.items():
            self._check(name, part)
        return self

    def _check_method(self) -> None:
        method = self.method
        if self.model.architecture is not None:
            raise problem_at(
                ("model", "architecture"),
                "several tasks share a base that was trained before; give its  id",
                value=self.model.architecture,
            )
        if method.runs_to_the_end or method.callbacks():
            raise problem_at(
                ("method",),
                f"method {method.name!r} changes what it trains on its way, which it cannot do for several tasks at "
                "once; choose another, such as lora",
                value=method.name,
            )
        if self.adapters == "separate" and method.trains_base_weights:
            raise problem_at(
                ("adapters",),
                f"method {method.name!r} trains the base weights, so that nothing would be shared; write  "
                "adapters: shared, or choose a method that adds weights, such as lora",
                value=self.adapters,
            )

    def _check_batches(self) -> None:
        if self.training.batch_tokens is not None:
            raise problem_at(
                ("training", "batch_tokens"),
                "the shares of tasks that train together are counted in batches of rows; use batch_size",
                value=self.training.batch_tokens,
            )
        if self.training.micro_batch != "whole":
            raise problem_at(
                ("training", "micro_batch"),
                "batches of tasks that train together are computed whole; remove it",
                value=self.training.micro_batch,
            )

    def _check_best_metric(self) -> None:
        best = self.best_metric
        name, slash, metric = best.partition(SEPARATOR)
        if best != MEAN and not (slash and metric and name in self.tasks):
            example = f"{next(iter(self.tasks))}{SEPARATOR}accuracy"
            raise problem_at(
                ("training", "best_metric"),
                f"{best!r} is neither {MEAN} nor the metric of a task ({', '.join(self.tasks)}), such as {example}",
                value=best,
            )

    def _check(self, name: str, part: JointTask) -> None:
        """Hold a task against the rules of a recipe, and against what can be trained beside others."""
        try:
            self.recipe(name)
        except ValidationError as problem:
            first = problem.errors()[0]
            inside = bool(first["loc"]) and first["loc"][0] in JointTask.model_fields
            at = ("tasks", name, *first["loc"]) if inside else first["loc"]
            raise problem_at(at, f"of task {name!r}: {first['msg']}", value=first["input"]) from problem
        if part.task.engine is not None or part.task.needs_base:
            raise problem_at(
                ("tasks", name, "task"),
                f"task {part.task.name!r} is trained by an engine of its own, which trains nothing beside it; give it "
                "a recipe of its own",
                value=part.task.name,
            )

    @property
    def best_metric(self) -> str:
        """What chooses the weights: `MEAN`, or the metric of a task."""
        return self.training.best_metric or MEAN

    def recipe(self, name: str) -> Recipe:
        """The recipe of one task alone, with what all tasks have in common."""
        part = self.tasks[name]
        chosen, _, metric = self.best_metric.partition(SEPARATOR)
        own = {key: getattr(part, key) for key in JointTask.model_fields if key in Recipe.model_fields}
        shared = {key: getattr(self, key) for key in ("description", "seed", "model", "method", "quantization")}
        training = self.training.model_copy(update={"best_metric": metric if chosen == name else None})
        return Recipe(**shared, **own, name=f"{self.name or 'run'}.{name}", training=training)
