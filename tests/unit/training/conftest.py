"""Recipes that train the tiny BERT on the 48 sentences in seconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftkit.errors import InterruptedRunError
from peftkit.recipe import Recipe
from peftkit.training import RunOptions, run
from peftkit.training.callbacks import ShowProgress

MakeRecipe = Callable[..., Recipe]
RunCut = Callable[[Recipe, Path, int], str]
MakeStudent = Callable[..., Recipe]
Checkpoint = Callable[[str], Path]


@pytest.fixture
def run_cut(monkeypatch: pytest.MonkeyPatch) -> RunCut:
    """Function that runs a recipe in a folder, presses Ctrl-C while a given step is computed, and gives the message."""

    def start(recipe: Recipe, folder: Path, step: int) -> str:
        original = ShowProgress.on_step_end

        def press(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGINT)
            original(self, args, state, control, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(ShowProgress, "on_step_end", press)
            with pytest.raises(InterruptedRunError) as stopped:
                run(recipe, folder, options=RunOptions(show_progress=False))
        return str(stopped.value)

    return start


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


@pytest.fixture
def still_bert(tiny_bert: Path, tmp_path: Path) -> Path:
    """The tiny BERT without dropout."""
    still = shutil.copytree(tiny_bert, tmp_path / "without-dropout")
    config = json.loads((still / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(config))
    return still


@pytest.fixture(scope="session")
def make_student(sentiment_files: dict[str, Path]) -> MakeStudent:
    """Function from a base and sections of a recipe to that recipe: one epoch of six batches of eight."""

    def make(base: Path, training: dict[str, Any] | None = None, **sections: Any) -> Recipe:
        values = {
            "name": "student",
            "model": {"id": str(base), "max_length": 32} | sections.pop("model", {}),
            "task": {"name": "sequence_classification", "labels": ["negative", "positive"]},
            "data": {"name": "files"} | {split: str(path) for split, path in sentiment_files.items()},
            "method": "lora",
            "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "logging_steps": 1} | (training or {}),
        }
        return Recipe.from_values(values | sections, origin="test")

    return make


@pytest.fixture(scope="session")
def teacher(make_student: MakeStudent, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny BERT that has learnt the sentences."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    run(make_student(checkpoint("bert"), {"epochs": 4}, method="full"), folder, options=RunOptions(show_progress=False))
    return folder
