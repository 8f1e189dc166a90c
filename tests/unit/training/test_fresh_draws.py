"""Tasks whose training batches are drawn at random: an interrupted run ends in the bytes of one that was not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftkit.recipe import Recipe
from peftkit.results import RunResult
from peftkit.tasks import DRAW
from peftkit.tasks.masking import Masking
from peftkit.training import RunOptions, resume, run

RunCut = Callable[[Recipe, Path, int], str]
QUIET = RunOptions(show_progress=False)
TEXTS = [
    "We loved the soup. The staff was kind.",
    "A dull mess of a film. Nobody had asked for it.",
    "The music is lovely. The plot is not.",
    "The town lies by the sea. Nothing happens there.",
]

pytestmark = pytest.mark.training


def recipe(model: Path, folder: Path, task: str, **training: Any) -> Recipe:
    (folder / "a.txt").write_text("\n\n".join(TEXTS * 5))
    values = {
        "name": "drawn",
        "model": {"id": str(model), "max_length": 16},
        "task": task,
        "data": {
            "name": "files",
            "train": f"{folder}/a.txt",
            "validation": f"{folder}/a.txt",
            "text_rows": "paragraph",
        },
        "method": {"name": "lora", "dropout": 0.1},
        "training": {"epochs": 3, "batch_size": 4, "learning_rate": 0.01, "logging_steps": 1} | training,
    }
    return Recipe.from_values(values, origin="test")


@pytest.mark.parametrize("step", [3, 5, 10])
@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_run_resumes_to_the_same_bytes(
    tiny_bert: Path, tmp_path: Path, run_cut: RunCut, step: int, workers: int
) -> None:
    made = recipe(tiny_bert, tmp_path, "masked_lm", data_workers=workers)
    whole = run(made, tmp_path / "whole", options=QUIET)
    assert whole.cost.steps > 10
    run_cut(made, tmp_path / "cut", step)
    resumed = resume(tmp_path / "cut", options=QUIET)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert resumed.metrics == whole.metrics
    assert training_losses(resumed) == training_losses(whole)


def weights(run_dir: Path) -> bytes:
    return next(run_dir.glob("*/*.safetensors")).read_bytes()


def training_losses(result: RunResult) -> list[float]:
    return [point.values["loss"] for point in result.history if "loss" in point.values]


@pytest.mark.parametrize("batching", ["random", "group_by_length"])
def test_every_epoch_draws_by_its_number_and_every_feature_by_its_place(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batching: str
) -> None:
    seeds: list[tuple[int, ...]] = []
    original = Masking.apply

    def record(self: Masking, feature: Any) -> Any:
        seeds.extend([tuple(feature[DRAW])] if DRAW in feature else [])
        return original(self, feature)

    monkeypatch.setattr(Masking, "apply", record)
    run(recipe(tiny_bert, tmp_path, "masked_lm", epochs=2, batching=batching), tmp_path / "run", options=QUIET)
    places = len(seeds) // 2
    assert places > 10
    assert sorted(seeds) == [(0, epoch, place) for epoch in range(2) for place in range(places)]
