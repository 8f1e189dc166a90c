"""Checks at the end of a run: the weights are those that were chosen, and what was saved is what was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from peftkit.errors import RunError
from peftkit.models import autocast, load_tuned
from peftkit.results import SplitRecord
from peftkit.training.trainer import VALIDATION, HookedTrainer

PROBE_ROWS = 8
_SCORE_TOLERANCE = 1e-3  # evaluation on a GPU is not bit-exact; the wrong checkpoint differs by far more


def check_best_score(trainer: HookedTrainer, splits: Mapping[str, SplitRecord]) -> None:
    """The loaded weights must score what the best checkpoint scored when it was written.

    Raises:
        RunError: they do not, so a part of the checkpoint was lost.
    """
    best = trainer.state.best_metric
    if best is None or VALIDATION not in splits:
        return
    name = str(trainer.setup.recipe.training.best_metric)
    found = splits[VALIDATION].metrics[name]
    if abs(found - best) > _SCORE_TOLERANCE:
        raise RunError(
            f"the best checkpoint (step {trainer.state.best_global_step}) had {VALIDATION}_{name} {best:.6f} when it "
            f"was written, but {found:.6f} after loading it again; the checkpoints are kept: report this as a bug"
        )


def check_reload(trainer: HookedTrainer, *, run_dir: Path) -> None:
    """The saved weights, loaded from disk on a fresh base model, must give the very logits of the trained model.

    Raises:
        RunError: the logits differ; the message tells by how much.
    """
    setup = trainer.setup
    features = next(iter(setup.features.values()))
    probe = features.select(range(min(PROBE_ROWS, len(features))))
    recipe, environment = setup.recipe, setup.environment
    rows = [{key: value for key, value in row.items() if key in setup.tokenizer.model_input_names} for row in probe]
    batch = recipe.task.collator(setup.tokenizer)(rows)
    trained = _logits(trainer.model, batch, task=recipe.task)
    loaded = load_tuned(run_dir, recipe.model, recipe.task.head(), dtype=environment.weight_dtype)
    reloaded = _logits(loaded.model.to(trainer.args.device), batch, task=recipe.task)
    if not torch.equal(trained, reloaded):
        difference = (trained - reloaded).abs().max().item()
        raise RunError(
            f"the saved weights do not reload: logits of {len(probe)} probe rows differ by up to {difference:.3g} "
            f"between the trained model and what '{run_dir}' holds; its checkpoints are kept: report this as a bug"
        )


def _logits(model: Any, batch: Mapping[str, torch.Tensor], *, task: Any) -> torch.Tensor:
    model.eval()
    with torch.inference_mode(), autocast(model):
        on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
        logits: torch.Tensor = task.forward(model, on_device).float().cpu()
    return logits
