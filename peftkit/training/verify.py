"""Checks at the end of a run: the weights are those that were chosen, and what was saved is what was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from peftkit.errors import RunError
from peftkit.models import Storage, load_tuned, on_device
from peftkit.outputs import logits_of
from peftkit.results import SplitRecord
from peftkit.training.setup import VALIDATION
from peftkit.training.trainer import HookedTrainer

PROBE_ROWS = 8
_SCORE_TOLERANCE = 1e-3  # evaluation on a GPU is not bit-exact; the wrong checkpoint differs by far more


def check_best_score(trainer: HookedTrainer, splits: Mapping[str, SplitRecord]) -> None:
    """The loaded weights must score what the best checkpoint scored when it was written.

    Raises:
        RunError: they do not, so a part of the checkpoint was lost.
    """
    if VALIDATION in splits and not trainer.setup.recipe.method.runs_to_the_end:
        name = str(trainer.setup.recipe.training.best_metric)
        compare_with_best(trainer, splits[VALIDATION].metrics[name], name=name)


def compare_with_best(trainer: HookedTrainer, found: float, *, name: str) -> None:
    """What the loaded weights score, `found`, must be what the best checkpoint scored; see `check_best_score`."""
    best = trainer.state.best_metric
    if best is not None and abs(found - best) > _SCORE_TOLERANCE:
        raise RunError(
            f"the best checkpoint (step {trainer.state.best_global_step}) had {VALIDATION}_{name} {best:.6f} when it "
            f"was written, but {found:.6f} after loading it again; the checkpoints are kept: report this as a bug"
        )


def check_reload(trainer: HookedTrainer, *, storage: Storage, run_dir: Path) -> None:
    """The saved weights, loaded from disk on a fresh base model, must give the very logits of the trained model.

    Raises:
        RunError: the logits differ; the message tells by how much.
    """
    setup = trainer.setup
    features = next(iter(setup.data.features.values()))
    probe = features.select(range(min(PROBE_ROWS, len(features))))
    recipe = setup.recipe
    batch = recipe.task.evaluation_collator(setup.data.tokenizer)(probe.to_list())
    # The engine lets the forward pass of a model compute in its own precision; what is saved knows nothing of that.
    model = trainer.accelerator.unwrap_model(setup.model, keep_fp32_wrapper=False)
    trained = logits_of(model.eval(), batch, task=recipe.task)
    loaded = load_tuned(run_dir, recipe.model, recipe.task.head(), storage=storage)
    reloaded = logits_of(on_device(loaded.model, trainer.args.device), batch, task=recipe.task)
    if not torch.equal(trained, reloaded):
        difference = (trained - reloaded).abs().max().item()
        raise RunError(
            f"the saved weights do not reload: logits of {len(probe)} probe rows differ by up to {difference:.3g} "
            f"between the trained model and what '{run_dir}' holds; its checkpoints are kept: report this as a bug"
        )
