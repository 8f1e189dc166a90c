"""Recipes that train the tiny BERT on the 48 sentences in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftkit.recipe import Recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def make_recipe(tiny_bert: Path, sentiment_files: dict[str, Path]) -> MakeRecipe:
    """Function from dotted settings to a recipe; without settings: LoRA, 2 epochs of 6 batches of 8."""

    def make(*settings: str, model: Path = tiny_bert, **files: Any) -> Recipe:
        text = f"""
            name: tiny
            model: {{id: {model}, max_length: 32}}
            task: sequence_classification
            data:
              name: files
              train: {files.get("train", sentiment_files["train"])}
              validation: {files.get("validation", sentiment_files["validation"])}
            method: {{name: lora, rank: 4}}
            training: {{epochs: 2, batch_size: 8, learning_rate: 0.01, logging_steps: 1}}
        """
        return Recipe.from_text(text, settings=settings)

    return make
