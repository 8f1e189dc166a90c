"""Recipe files of all kinds, told apart by their keys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftkit.multi_task import TASKS_KEY, MultiTask
from peftkit.pipeline import STAGES_KEY, Pipeline
from peftkit.recipe import Recipe
from peftkit.yaml_source import read_yaml


def kind_of(path: Path) -> type[Recipe] | type[Pipeline] | type[MultiTask]:
    """What a file is the recipe of: one run, stages, or several tasks."""
    keys = read_yaml(path).value
    return Pipeline if STAGES_KEY in keys else MultiTask if TASKS_KEY in keys else Recipe


def read_recipe(path: Path, *, settings: Sequence[str] = ()) -> Recipe | Pipeline | MultiTask:
    """What a file says, with `a.b=c` settings laid over it; see `Recipe.from_yaml`."""
    return kind_of(path).from_yaml(path, settings=settings)
