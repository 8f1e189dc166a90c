"""What docs/multi_task.md shows is a recipe."""

from __future__ import annotations

import re
from pathlib import Path

from peftkit.multi_task import MultiTask

PAGE = (Path(__file__).parents[3] / "docs" / "multi_task.md").read_text("utf-8")


def test_the_recipe_of_the_page_can_be_meant() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    recipe = MultiTask.from_text(text)
    assert list(recipe.tasks) == ["mood", "likeness", "names"]
    assert recipe.tasks["likeness"].weight == 2
