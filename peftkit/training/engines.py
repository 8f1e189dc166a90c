"""Which trainer trains a task, and what it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback

from peftkit.errors import RecipeError
from peftkit.recipe import Recipe, TrainingOptions
from peftkit.training.batching import one_entry
from peftkit.training.distillation import Distilling
from peftkit.training.execution import Execution
from peftkit.training.pieces import Pieces, with_features
from peftkit.training.regularization import Regularization
from peftkit.training.setup import VALIDATION, Setup, best_metric, engine_arguments
from peftkit.training.streaming import training_features
from peftkit.training.trainer import HookedTrainer
from peftkit.training.trl_trainer import trl_trainer


def build_trainer(setup: Setup, checkpoints: Path, *, callbacks: Sequence[TrainerCallback]) -> HookedTrainer:
    """The trainer of a run; checkpoints go to the folder `checkpoints`."""
    recipe = setup.recipe
    callbacks = [*callbacks, *asked_callbacks(recipe.training, checkpoints)]
    trainer = _trainer(setup, checkpoints, callbacks)
    trainer.remove_callback(PrinterCallback)
    trainer.setup = setup
    trainer.reads_answers = reads_answers(recipe)
    trainer.regularization = Regularization(setup.model, [part.start(setup.model) for part in recipe.regularizers])
    trainer.add_callback(trainer.regularization)
    trainer.execution = Execution(setup, trainer.regularization)
    if recipe.training.micro_batch == "auto":
        if trainer.args.world_size > 1:
            raise RecipeError("training.micro_batch: several devices have to compute as many pieces each; use whole")
        trainer.pieces = Pieces(setup.model, recipe.task.collator(setup.data.tokenizer))
        trainer.execution.parts.append(trainer.pieces)
    trainer.distilling = Distilling.of(setup)
    if trainer.distilling is not None:
        trainer.add_callback(trainer.distilling)
    return trainer


def reads_answers(recipe: Recipe) -> bool:
    """Whether answers are generated in evaluations that only watch the training."""
    return not recipe.task.generates or best_metric(recipe).needs_answers


def asked_callbacks(training: TrainingOptions, checkpoints: Path) -> list[TrainerCallback]:
    """What a recipe asks to watch the training."""
    callbacks: list[TrainerCallback] = []
    if "tensorboard" in training.report_to:
        # The engine's own choice of folder lies among the checkpoints, which go when the run is finished.
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        callbacks.append(TensorBoardCallback(SummaryWriter(str(checkpoints.parent / "tensorboard"))))
    if training.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(training.early_stopping_patience))
    return callbacks


def _trainer(setup: Setup, checkpoints: Path, callbacks: Sequence[TrainerCallback]) -> HookedTrainer:
    recipe = setup.recipe
    if recipe.task.engine is not None:
        return trl_trainer(recipe.task.engine, setup, checkpoints, callbacks=callbacks)
    return HookedTrainer(
        model=setup.model,
        args=engine_arguments(setup, checkpoints),
        train_dataset=training_features(setup.data, recipe),
        eval_dataset=setup.data.features.get(VALIDATION),
        data_collator=_collator(setup),
        callbacks=callbacks,
    )


def _collator(setup: Setup) -> Any:
    training = setup.recipe.training
    collate = setup.recipe.task.collator(setup.data.tokenizer)
    if training.micro_batch == "auto":
        collate = with_features(collate)
    return collate if training.batch_tokens is None else one_entry(collate)
