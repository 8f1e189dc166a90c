"""A recipe of several stages: each trains on what the stage before it has left."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from peftkit.distillation import Distillation
from peftkit.recipe import (
    ModelSpec,
    NamedAugmentation,
    NamedLoss,
    NamedMethod,
    NamedMetric,
    NamedModel,
    NamedQuantizer,
    NamedRegularizer,
    NamedSource,
    NamedTask,
    Recipe,
    RecipeFile,
    TrainingOptions,
    problem_at,
)
from peftkit.recipe_section import Section

STAGES_KEY = "stages"
"""A recipe file with this key is a pipeline."""


class Stage(Section):
    """One step of a pipeline: what a recipe says, but for the model, which the stage before it gives."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    """Name of the stage, also of its folder."""
    start: Literal["merged", "stacked"] = "merged"
    """What becomes of the adapter of the stage before: merged into the weights that this stage starts from and saves
    with its own, or stacked: kept apart, and applied to the base model before this stage's own. A head starts anew."""
    max_length: int | None = Field(None, ge=2)
    """Longest input in tokens; none: that of `model`."""
    task: NamedTask
    """What is learnt."""
    data: NamedSource
    """Where rows come from."""
    augmentations: tuple[NamedAugmentation, ...] = ()
    """Rewritten copies of the training rows that are added to them."""
    method: NamedMethod
    """Which weights train."""
    quantization: NamedQuantizer | None = None
    """How the frozen weights are stored; none: in `model.dtype`."""
    loss: NamedLoss | None = None
    """What is minimised; none: the task's own."""
    regularizers: tuple[NamedRegularizer, ...] = ()
    """What keeps training from fitting too closely, in the order it is applied."""
    distillation: Distillation | None = None
    """What is learnt from a teacher; none: nothing."""
    metrics: tuple[NamedMetric, ...] = ()
    """How predictions are scored; none: the task's own."""
    training: TrainingOptions = TrainingOptions()
    """How the weights are trained."""


class Pipeline(RecipeFile):
    """Stages that train one after the other, the last of which is the target."""

    seeds: tuple[int, ...] = Field((0,), min_length=1)
    """The pipeline is run once with each; the first gives the model that is loaded."""
    model: NamedModel
    """The base model of the first stage."""
    stages: tuple[Stage, ...] = Field(min_length=2)
    """In order; the last one is the target."""
    compare: bool = True
    """Also run the target without each of the other stages, and without all, to see what each of them adds."""

    @model_validator(mode="after")
    def _stages_fit(self) -> Pipeline:
        names = [stage.name for stage in self.stages]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise problem_at(("stages",), f"two stages are called {twice!r}; give each a name of its own", value=names)
        if len(set(self.seeds)) < len(self.seeds):
            raise problem_at(("seeds",), f"{list(self.seeds)} names a seed twice; keep one", value=self.seeds)
        for place, stage in enumerate(self.stages):
            self._check(place, stage)
        first_elsewhere = (*self.stages[1:2], self.target)
        if self.model.architecture and self.compare and not all(s.method.trains_base_weights for s in first_elsewhere):
            raise problem_at(
                ("compare",),
                "to leave out the first stage would be to add to the random weights of model.architecture; write  "
                "compare: false",
                value=True,
            )
        return self

    def _check(self, place: int, stage: Stage) -> None:
        """Hold a stage against the rules of a recipe, and against the stage that starts from it."""
        model = self.model.tuned(Path(stage.name)) if place else self.model
        try:
            self.recipe(stage, model=model, seed=self.seeds[0])
        except ValidationError as problem:
            first = problem.errors()[0]
            at = ("stages", place, *first["loc"])
            raise problem_at(at, first["msg"], value=first["input"]) from problem
        if place == 0 and stage.start == "stacked":
            raise problem_at(
                ("stages", 0, "start"), "the first stage starts from the base model; remove it", value=stage.start
            )
        if place + 1 == len(self.stages):
            return
        method, after = stage.method, self.stages[place + 1]
        if not method.trains_base_weights and not method.mergeable:
            raise problem_at(
                ("stages", place, "method"),
                f"what {method.name!r} adds cannot be merged, so that no stage can start from it; choose another "
                "method, such as lora",
                value=method.name,
            )
        if after.start == "stacked" and (method.trains_base_weights or after.quantization is not None):
            reason = f"method {method.name!r} of the stage before it leaves no adapter"
            if not method.trains_base_weights:
                reason = f"{after.quantization.name} would round that adapter"  # type: ignore[union-attr] # one holds
            raise problem_at(("stages", place + 1, "start"), f"{reason}; write  start: merged", value=after.start)

    @property
    def target(self) -> Stage:
        """The last stage."""
        return self.stages[-1]

    def recipe(self, stage: Stage, *, model: ModelSpec, seed: int) -> Recipe:
        """The recipe of one stage on the model that it starts from."""
        values = {key: getattr(stage, key) for key in Stage.model_fields if key in Recipe.model_fields}
        if stage.max_length is not None:
            model = model.model_copy(update={"max_length": stage.max_length})
        return Recipe(**values | {"name": stage.name, "model": model, "seed": seed})
