"""What a trainer is made of, and how long and how it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments

from peftkit.losses import Loss
from peftkit.metrics import Metric
from peftkit.recipe import Recipe, TrainingOptions
from peftkit.training.environment import Environment
from peftkit.training.prepare import PreparedData

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VALIDATION = "validation"


@dataclass(frozen=True)
class Setup:
    """Everything a trainer is made of.

    Args:
        recipe: completed, see `prepare.completed`.
        model: the method applied.
        data: checked and encoded.
    """

    recipe: Recipe
    model: PreTrainedModel
    data: PreparedData
    environment: Environment

    @property
    def criterion(self) -> Loss:
        """What compares logits with labels."""
        assert self.recipe.loss is not None  # `completed` recipes name their loss
        return self.recipe.loss


def best_metric(recipe: Recipe) -> Metric:
    """The metric of a completed recipe that chooses the weights."""
    return next(metric for metric in recipe.metrics if metric.score_name == recipe.training.best_metric)


def total_steps(recipe: Recipe, rows: int, *, batches: int | None = None) -> int:
    """Optimizer steps of the whole run; see `steps_per_epoch`."""
    training = recipe.training
    if training.max_steps is not None:
        return training.max_steps
    return math.ceil(training.epochs * steps_per_epoch(recipe, rows, batches=batches))


def steps_per_epoch(recipe: Recipe, rows: int, *, batches: int | None = None) -> int:
    """Optimizer steps of one pass over the training rows.

    Args:
        batches: of an epoch, where they are cut by tokens; not known yet: as if all rows were of full length.
    """
    training = recipe.training
    if batches is None and training.batch_tokens is not None:
        batches = math.ceil(rows / (training.batch_tokens // recipe.model.max_length))
    if batches is None:
        batches = math.ceil(rows * recipe.task.draws_per_row / training.batch_size)
    return math.ceil(batches / training.accumulation_steps)


def engine_arguments(
    setup: Setup, checkpoints: Path, *, kind: type[TrainingArguments] = TrainingArguments
) -> TrainingArguments:
    """The engine's options for a recipe; checkpoints go to the folder `checkpoints`."""
    training = setup.recipe.training
    engine = setup.recipe.task.engine
    arguments = kind(
        output_dir=str(checkpoints),
        run_name=setup.recipe.name,
        seed=setup.recipe.seed,
        data_seed=setup.recipe.seed,
        use_cpu=setup.environment.device == "cpu",
        bf16=setup.environment.precision == "bf16",
        fp16=setup.environment.precision == "fp16",
        logging_steps=training.logging_steps,
        logging_nan_inf_filter=False,  # a NaN stops the run instead of being left out of the curve
        report_to=[name for name in training.report_to if name != "tensorboard"] or "none",
        restore_callback_states_from_checkpoint=True,
        dataloader_num_workers=training.data_workers,
        dataloader_pin_memory=setup.environment.device == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        label_names=["labels"],
        **_optimization(training),
        **_evaluation(setup),
        **(engine.options if engine else {}),
    )
    if arguments.n_gpu > 1:
        # Without a launcher the engine would use nn.DataParallel, which is slower and breaks exact loss normalisation.
        arguments._n_gpu = 1
    return arguments


def _optimization(training: TrainingOptions) -> dict[str, Any]:
    return {
        "num_train_epochs": training.epochs,
        "max_steps": training.max_steps or -1,
        # Batches that are cut by tokens come as entries of the data set, one at a time.
        "per_device_train_batch_size": training.batch_size if training.batch_tokens is None else 1,
        "per_device_eval_batch_size": training.eval_batch_size,
        "gradient_accumulation_steps": training.accumulation_steps,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.scheduler,
        "warmup_steps": training.warmup_steps,
        "optim": training.optimizer,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "activation_checkpointing": training.gradient_checkpointing,
        # The reentrant form loses the gradients of adapters on a frozen base.
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    }


def _evaluation(setup: Setup) -> dict[str, Any]:
    """When to evaluate and save, and which checkpoint to keep; without validation rows the last one."""
    training = setup.recipe.training
    # The best counts too; and with a limit of 1 the engine deletes the newest when it stops: nothing could be resumed.
    cadence: dict[str, Any] = {"save_strategy": "epoch", "save_total_limit": training.keep_checkpoints + 1}
    if isinstance(training.evaluate_every, int):
        cadence |= {"save_strategy": "steps", "save_steps": training.evaluate_every}
    if VALIDATION not in setup.data.features:
        return cadence | {"eval_strategy": "no"}
    best = best_metric(setup.recipe)
    return cadence | {
        "eval_strategy": cadence["save_strategy"],
        "eval_steps": cadence.get("save_steps"),
        "load_best_model_at_end": not setup.recipe.method.runs_to_the_end,
        "metric_for_best_model": f"eval_{best.score_name}",
        "greater_is_better": best.greater_is_better,
    }
