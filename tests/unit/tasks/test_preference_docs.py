"""The pages on preferences: their recipes are valid, and their plugin is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from peftkit.recipe import Recipe
from peftkit.rewards import rewards

PAGES = Path(__file__).parents[3] / "docs" / "tasks"


@pytest.mark.parametrize(("page", "task"), [("preference", "dpo"), ("reward_model", "reward_model"), ("grpo", "grpo")])
def test_recipes_are_valid(page: str, task: str) -> None:
    text = (PAGES / f"{page}.md").read_text("utf-8")
    (values,) = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL))
    assert Recipe.from_values(values, origin=page).task.name == task


def test_reward_of_the_page_earns() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (PAGES / "grpo.md").read_text("utf-8"), flags=re.DOTALL)
    try:
        exec(block, {})
        assert rewards.build("polite").of("Wait, please.", None) == 1.0
    finally:
        rewards._classes.pop("polite", None)


def test_every_loss_and_reward_is_on_its_page() -> None:
    from peftkit.tasks.dpo import DirectPreference

    page = (PAGES / "preference.md").read_text("utf-8")
    schema = DirectPreference.model_json_schema()["properties"]["loss_type"]
    names = schema.get("enum") or [name for part in schema["anyOf"] for name in part["enum"]]
    assert len(names) == 15
    assert all(name in page for name in names)
    assert all(f"| `{name}` |" in (PAGES / "grpo.md").read_text("utf-8") for name in rewards.names())
