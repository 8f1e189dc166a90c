"""A suite: one base recipe, variants of it, and seeds; every pair of variant and seed is a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from peftkit.errors import PeftkitError, RecipeError
from peftkit.recipe import Recipe
from peftkit.recipe_problems import describe_problems
from peftkit.yaml_source import read_yaml


class Suite(BaseModel):
    """What a suite file says."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=r"^\w[\w.-]*$")
    """Name of the suite, also of its folder."""
    description: str = ""
    """One line for reports."""
    recipe: str
    """The base recipe; relative to the suite file."""
    set: Mapping[str, Any] = {}
    """Settings for all runs: dotted keys of the recipe and their values."""
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Every variant runs once with each."""
    variants: Mapping[str, Mapping[str, Any]] = Field(min_length=1)
    """Settings of each variant, by its label."""
    split: str | None = None
    """Split that the variants are compared on; none: test, where there is one, else validation."""
    metric: str | None = None
    """Score that they are compared by; none: the recipe's best_metric."""

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"a seed stands twice in {list(seeds)}; name each once")
        return seeds

    @field_validator("variants")
    @classmethod
    def _labels_name_folders(cls, variants: Mapping[str, Any]) -> Mapping[str, Any]:
        for label in variants:
            if not label or not label.replace("-", "_").replace(".", "_").isidentifier():
                raise ValueError(f"the label {label!r} cannot name a folder; use letters, digits, _ . and -")
        return variants


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
        """Where a failure of this run is recorded, beside its folder."""
        return self.folder.with_name(f"{self.folder.name}.failure.json")

    @property
    def log_file(self) -> Path:
        """Where the run's output goes."""
        return self.folder.with_name(f"{self.folder.name}.log")


def read_suite(path: Path) -> Suite:
    """The suite in a file.

    Raises:
        RecipeError: every problem of the file at once, each with its dotted key and line.
    """
    source = read_yaml(path)
    try:
        suite = Suite.model_validate(source.value)
    except ValidationError as problem:
        raise RecipeError(describe_problems(problem, source, root=Suite)) from problem
    if source.repeated:
        raise RecipeError(describe_problems(None, source, root=Suite))
    return suite


def plan(suite: Suite, path: Path, out: Path, *, settings: Sequence[str] = ()) -> list[PlannedRun]:
    """All runs of a suite, seed by seed, so that a stopped suite has compared every variant at least once.

    Args:
        path: of the suite file.
        out: folder of the suite.
        settings: further `a.b=c` for all runs.

    Raises:
        RecipeError: the recipes of variants are wrong, all of them named; or two variants are the same.
    """
    problems: list[str] = []
    runs: list[PlannedRun] = []
    for seed in suite.seeds:
        for label, changes in suite.variants.items():
            common = [*_as_settings(suite.set), *settings, *_as_settings(changes), f"seed={seed}"]
            try:
                recipe = Recipe.from_yaml(path.parent / suite.recipe, settings=common)
            except PeftkitError as problem:
                problems += [f"variant {label!r}: {problem}"] if seed == suite.seeds[0] else []
                continue
            recipe = recipe.model_copy(update={"name": f"{label}-seed{seed}"})
            runs.append(PlannedRun(label, seed, recipe, out / label / f"seed{seed}-{content_key(recipe)[:12]}"))
    if problems:
        raise RecipeError("\n".join([f"{path} cannot be run:", *problems]))
    _refuse_twins(runs)
    return runs


def content_key(recipe: Recipe) -> str:
    """Digest of what a recipe does: its name and description do not count."""
    values = recipe.model_dump(mode="json")
    del values["name"], values["description"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _as_settings(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6)}" for key, value in values.items()]


def _refuse_twins(runs: Sequence[PlannedRun]) -> None:
    first: dict[str, str] = {}
    for run in runs:
        twin = first.setdefault(content_key(run.recipe), run.label)
        if twin != run.label:
            raise RecipeError(f"the variants {twin!r} and {run.label!r} are the same recipe; remove one of them")
