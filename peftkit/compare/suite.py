"""The suite file: a base recipe, its variants and seeds, and the runs that follow from them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from peftkit.errors import RecipeError
from peftkit.recipe import Recipe
from peftkit.recipe_problems import describe_problems, problem_lines
from peftkit.recipe_section import Section
from peftkit.registry import closest
from peftkit.yaml_source import YamlSource, read_yaml

Label = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
Settings = Annotated[Mapping[str, Any], BeforeValidator(lambda value: {} if value is None else value)]
Line = tuple[int, str]
"""A problem in words, after the line that decides its place in the message."""

_PLAN = frozenset({"recipe", "set", "variants"})
"""Keys of a suite that its recipes come from."""
_OWN = {"seed": "the suite's  seeds  decide; remove it", "name": "a run is named after its variant; remove it"}
"""Keys of a recipe that a suite sets itself."""


class Suite(Section):
    """What a suite file says."""

    name: Label = "suite"
    """Name of the suite, also of its folder: letters, digits, _ . and -; none: the file's name."""
    description: str = ""
    """One line for reports."""
    recipe: str = Field(min_length=1)
    """File of the base recipe, relative to the suite file."""
    set: Settings = Field(default_factory=dict)
    """Settings for all runs: dotted keys of the recipe and their values."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field((0, 1, 2), min_length=1)
    """Every variant runs once with each."""
    variants: Mapping[Label, Settings] = Field(min_length=1)
    """Settings of each variant, by its label; {} is the base recipe."""
    split: str | None = None
    """Split that the variants are compared on; none: test, where there is one, else validation."""
    metric: str | None = None
    """Score that they are compared by; none: the recipe's best_metric."""

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len({*seeds}) < len(seeds):
            raise ValueError(f"a seed stands twice in {list(seeds)}; name each once")
        return seeds


@dataclass(frozen=True)
class PlannedRun:
    """One run of a suite.

    Args:
        recipe: of this variant, with the seed.
        folder: of the run.
    """

    label: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def failure_file(self) -> Path:
        """Where a failure of this run is recorded: beside its folder, which only `peftkit run` writes to."""
        return self.folder.with_name(f"{self.folder.name}.failure.json")

    @property
    def log_file(self) -> Path:
        """Where the run's output goes."""
        return self.folder.with_name(f"{self.folder.name}.log")


@dataclass(frozen=True)
class Plan:
    """A suite with the recipe of every variant; all of them are valid and different.

    Args:
        recipes: by label, with the base recipe's seed.
    """

    suite: Suite
    recipes: Mapping[str, Recipe]

    def runs(self, out: Path) -> list[PlannedRun]:
        """All runs, seed by seed, so that a stopped suite has compared every variant at least once."""
        return [
            _planned(label, recipe.model_copy(update={"seed": seed, "name": f"{label}-seed{seed}"}), out)
            for seed in self.suite.seeds
            for label, recipe in self.recipes.items()
        ]


def read_plan(path: Path, *, settings: Sequence[str] = (), seeds: tuple[int, ...] | None = None) -> Plan:
    """The suite in a file, and the recipes it plans.

    Args:
        settings: `a.b=c` for all runs; they win over what the suite sets.
        seeds: instead of those of the suite.

    Raises:
        RecipeError: every problem of the suite and of the recipes of its variants at once, each with its dotted key
            and line.
    """
    source = read_yaml(path, what="suite")
    problem: ValidationError | None = None
    try:
        suite = Suite.model_validate(source.value)
    except ValidationError as found:
        problem = found
        if _PLAN & {str(error["loc"][0]) for error in found.errors()}:
            raise RecipeError(describe_problems(problem, source, root=Suite)) from problem
        suite = Suite.model_validate({key: value for key, value in source.value.items() if key in _PLAN})
    recipes, further = _recipes(suite, source, settings)
    if problem or source.repeated or further:
        raise RecipeError(describe_problems(problem, source, root=Suite, further=further)) from problem
    named = {} if "name" in source.value else {"name": re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "suite"}
    return Plan(suite.model_copy(update=named | ({"seeds": seeds} if seeds else {})), recipes)


def content_key(recipe: Recipe) -> str:
    """Digest of what a recipe does: its name and description do not count."""
    values = recipe.model_dump(mode="json")
    del values["name"], values["description"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _planned(label: str, recipe: Recipe, out: Path) -> PlannedRun:
    folder = out / label / f"seed{recipe.seed}-{content_key(recipe)[:12]}"
    return PlannedRun(label, recipe.seed, recipe, folder)


def _recipes(suite: Suite, source: YamlSource, settings: Sequence[str]) -> tuple[dict[str, Recipe], list[Line]]:
    """The recipe of every variant, and all their problems."""
    try:
        base = _base(suite, source)
    except RecipeError as problem:
        line = source.place(("recipe",))
        return {}, [(int(line or 0), f"recipe (line {line}): {problem}")]
    recipes: dict[str, Recipe] = {}
    found: dict[str, list[str]] = {}
    for label in suite.variants:
        recipe, problems = _variant(label, suite, base=base, source=source, settings=settings)
        for text in problems:
            found.setdefault(text, []).append(label)
        if recipe is not None:
            recipes[label] = recipe
    lines = [
        (int(source.lines["variants", labels[0]]), f"{_named(labels, suite)}: {text}") for text, labels in found.items()
    ]
    return recipes, [*lines, *_twins(recipes, source), *_unknown_metric(suite, recipes, source)]


def _base(suite: Suite, source: YamlSource) -> YamlSource:
    """The base recipe, its lines with the name of its file, under what the suite sets for all."""
    base = read_yaml(Path(source.origin).parent / suite.recipe)
    if base.repeated:
        raise RecipeError(describe_problems(None, base, root=Recipe))
    lines = {path: f"line {line} of {base.origin}" for path, line in base.lines.items()}
    return replace(base, lines={}, settings=lines)


def _variant(
    label: str, suite: Suite, *, base: YamlSource, source: YamlSource, settings: Sequence[str]
) -> tuple[Recipe | None, list[str]]:
    changes = suite.variants[label]
    own = [*_own_keys(suite.set, source, ("set",)), *_own_keys(changes, source, ("variants", label))]
    own += [f"{key} (--set): {_OWN[key]}" for key in _OWN if any(text.startswith(f"{key}=") for text in settings)]
    if own:
        return None, own
    try:
        merged = base.with_values(suite.set, places=_places(source, ("set",)))
        merged = merged.with_values(changes, places=_places(source, ("variants", label)))
        merged = merged.with_settings(settings)
    except RecipeError as problem:
        return None, [str(problem)]
    try:
        return Recipe.model_validate(merged.value), []
    except ValidationError as problem:
        return None, [text for _, text in problem_lines(problem, merged, root=Recipe)]


def _places(source: YamlSource, at: tuple[str, ...]) -> dict[tuple[str, ...], str]:
    """Lines of the suite below `at`, by the path in the recipe that they set."""
    below = {path[len(at) :]: line for path, line in source.lines.items() if path[: len(at)] == at and path != at}
    return {(*path[0].split("."), *path[1:]): f"line {line}" for path, line in below.items()}


def _own_keys(values: Mapping[str, Any], source: YamlSource, at: tuple[str, ...]) -> Iterator[str]:
    for key in values:
        if key in _OWN:
            yield f"{key} (line {source.place((*at, key))}): {_OWN[key]}"


def _named(labels: Sequence[str], suite: Suite) -> str:
    if len(labels) == len(suite.variants) > 1:
        return "every variant"
    return f"variants.{labels[0]}" if len(labels) == 1 else f"variants {', '.join(labels)}"


def _twins(recipes: Mapping[str, Recipe], source: YamlSource) -> Iterator[Line]:
    first: dict[str, str] = {}
    for label, recipe in recipes.items():
        twin = first.setdefault(content_key(recipe), label)
        if twin != label:
            line = source.lines["variants", label]
            yield line, f"variants.{label} (line {line}): the same recipe as variant {twin!r}; remove one of them"


def _unknown_metric(suite: Suite, recipes: Mapping[str, Recipe], source: YamlSource) -> Iterator[Line]:
    """Which metrics there are without a list of them depends on the data; it is then told after the runs."""
    for label, recipe in recipes.items():
        known = [metric.score_name for metric in recipe.metrics]
        if known and suite.metric and suite.metric not in known:
            close = closest(suite.metric, known)
            hint = f"; did you mean {close!r}?" if close else ""
            line = source.lines["metric",]
            listed = ", ".join(known)
            yield line, f"metric (line {line}): {suite.metric!r} is not among those of {label!r} ({listed}){hint}"
            return
