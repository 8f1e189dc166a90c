"""The pages on generating tasks: their recipes are valid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftkit.metrics import metrics
from peftkit.recipe import Recipe

PAGES = Path(__file__).parents[3] / "docs" / "tasks"
NAMES = ("text_generation", "instruction_tuning", "summarization", "translation")


def snippets(name: str) -> list[dict[str, Any]]:
    page = (PAGES / f"{name}.md").read_text("utf-8")
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)]


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_valid(name: str) -> None:
    whole = [values for values in snippets(name) if "task" in values]
    assert [Recipe.from_values(values, origin=name).task.name for values in whole] == [name]
    for values in snippets(name):
        for spec in values.get("metrics", []):
            metrics.build(spec)
