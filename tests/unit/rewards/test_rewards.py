from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from peftkit.cli.plugin_files import load_plugin_files
from peftkit.recipe import Recipe
from peftkit.rewards import rewards


@pytest.mark.parametrize(
    ("options", "text", "answer", "expected"),
    [
        ({"name": "exact_answer"}, "3 + 4 makes 7.", "#### 7", 1.0),
        ({"name": "exact_answer"}, "1,200.0", "1200", 1.0),
        ({"name": "exact_answer"}, "7, or is it 8", "7", 0.0),
        ({"name": "exact_answer"}, "no number", "7", 0.0),
        ({"name": "exact_answer", "pattern": r"\((\w)\)"}, "(A) or rather (B)", "(B)", 1.0),
        ({"name": "regex", "pattern": r"\d+"}, "seven is 7", None, 1.0),
        ({"name": "regex", "pattern": r"\d+", "whole": True}, "seven is 7", None, 0.0),
        ({"name": "regex", "pattern": "[.!?]$"}, "Yes", None, 0.0),
        ({"name": "length", "words": 4}, "one two three four", None, 1.0),
        ({"name": "length", "words": 4}, "one two three", None, 0.75),
        ({"name": "length", "words": 4}, "", None, 0.0),
        ({"name": "length", "words": 2}, "one two three four five", None, 0.0),
    ],
)
def test_values_by_hand(options: Mapping[str, Any], text: str, answer: str | None, expected: float) -> None:
    assert rewards.build(options).of(text, answer) == expected


def test_reward_of_a_plugin_file(tmp_path: Path) -> None:
    (tmp_path / "vowels.py").write_text(
        "from peftkit.rewards import Reward, rewards\n"
        '@rewards.register("test_vowels")\n'
        "class Vowels(Reward):\n"
        '    """Share of vowels."""\n'
        "    def of(self, text, answer):\n"
        '        return sum(letter in "aeiou" for letter in text) / len(text)\n'
    )
    try:
        load_plugin_files([tmp_path / "vowels.py"])
        values = {"model": "x", "data": {"name": "hub", "id": "x"}, "method": "lora", "training": {"batch_size": 8}}
        task = {"name": "grpo", "rewards": ["test_vowels"]}
        recipe = Recipe.from_values({**values, "task": task}, origin="test")
        assert recipe.task.rewards[0].of("abba", None) == 0.5  # type: ignore[attr-defined] # of this task
    finally:
        rewards._classes.pop("test_vowels", None)
