"""A tiny model with a batch, and recipes that train it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.recipe import Recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def model(tiny_bert: Path) -> Any:
    """BERT with two classes and without dropout, in training mode."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(
        tiny_bert, num_labels=2, attention_probs_dropout_prob=0.0
    ).train()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three rows of seven tokens."""
    ids = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def still_bert(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT without dropout."""
    copy = tmp_path_factory.mktemp("still") / "bert"
    shutil.copytree(tiny_bert, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"attention_probs_dropout_prob": 0.0}))
    return copy


@pytest.fixture
def make_recipe(tiny_bert: Path, sentiment_files: dict[str, Path]) -> MakeRecipe:
    """Function from regularizers to a recipe of one epoch of six batches of eight."""

    def make(*parts: Any, method: Any = "lora", base: Path = tiny_bert, **training: Any) -> Recipe:
        return Recipe.from_values(
            {
                "name": "tiny",
                "model": {"id": str(base), "max_length": 32},
                "task": "sequence_classification",
                "data": {"name": "files"} | {split: str(path) for split, path in sentiment_files.items()},
                "method": method,
                "regularizers": list(parts),
                "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "logging_steps": 1, **training},
            },
            origin="test",
        )

    return make
