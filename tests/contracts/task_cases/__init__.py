"""What every task must be able to show: one file per task, each with a `CASE` or several `CASES`.

A case is a recipe on a tiny model and a few rows of our own, and inputs such as an application would give.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftkit.recipe import Recipe

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class TaskCase:
    """One task on one model.

    Args:
        model: name of a tiny checkpoint of tests/conftest.py.
        task: the recipe's task.
        train, validation: rows; at least 8 to train on.
        inputs: what an application asks; empty where the task has nothing to answer.
        recipe: further sections of the recipe, e.g. a loss.
        max_length: of the model.
        accumulates: whether k micro-batches must equal one batch; where not, the reason is in the case's file.
    """

    model: str
    task: Mapping[str, Any]
    train: Rows
    validation: Rows
    inputs: Sequence[Any] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    accumulates: bool = True
    max_length: int = 48

    @property
    def name(self) -> str:
        return f"{self.task['name']}-{self.model}"

    def build(self, model: Path, folder: Path, **training: Any) -> Recipe:
        """The recipe, its rows written to `folder`."""
        for split, rows in (("train", self.train), ("validation", self.validation)):
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        values = {
            "name": "case",
            "model": {"id": str(model), "max_length": self.max_length},
            "task": self.task,
            "data": {"name": "files", "train": f"{folder}/train.jsonl", "validation": f"{folder}/validation.jsonl"},
            "method": {"name": "lora", "rank": 4},
            "training": {"epochs": 1, "batch_size": 4, "learning_rate": 0.01, "logging_steps": 1} | training,
        }
        return Recipe.from_values(values | self.recipe, origin="task case")


def all_cases() -> list[TaskCase]:
    """The cases of every file of this folder."""
    found: list[TaskCase] = []
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        found += getattr(loaded, "CASES", None) or [loaded.CASE]
    return found
