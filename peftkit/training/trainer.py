"""The engine: `transformers.Trainer` with peftkit's hooks. The only file that knows its signature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from peftkit.errors import RunError
from peftkit.losses import IGNORED
from peftkit.recipe import Recipe, TrainingOptions
from peftkit.regularizers import AtWork
from peftkit.tasks import ROW, Task
from peftkit.training.batching import LengthGroupedSampler
from peftkit.training.checkpoints import restore_tuned, save_tuned
from peftkit.training.environment import Environment

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VALIDATION = "validation"


@dataclass(frozen=True)
class Setup:
    """Everything a trainer is made of.

    Args:
        recipe: completed, see `prepare.completed`.
        model: the method applied.
        features: encoded rows by split.
        place: a row of a split in words, for messages.
    """

    recipe: Recipe
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    features: Mapping[str, Dataset]
    environment: Environment
    place: Callable[[str, int], str]


class HookedTrainer(Trainer):
    """`Trainer` that knows the rows of a batch, checks the first gradients and stops at a loss that is no number."""

    setup: Setup
    regularizers: tuple[AtWork, ...] = ()
    repeating = False
    """Whether the pass that is under way only adds to the gradients of another over the same batch."""
    batch_rows: tuple[int, ...] = ()
    gradients_checked = False

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = dict(inputs)
        rows = inputs.pop(ROW, None)
        if rows is not None:
            self.batch_rows = tuple(rows.tolist())
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        training = self.setup.recipe.training
        if training.batching == "random":
            return super()._get_train_sampler(train_dataset)
        rows = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(ids) for ids in rows["input_ids"]]
        # The engine's own sampler draws from the global random state, so a resumed run would see other rows.
        return LengthGroupedSampler(lengths, training.batch_size, seed=self.setup.recipe.seed)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The engine's optimizer, with the learning rates of the tuning method where those differ."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new:
            rates = self.setup.recipe.method.learning_rates(self.model, learning_rate=self.args.learning_rate)
            set_learning_rates(optimizer, {self.model.get_parameter(name): rate for name, rate in rates.items()})
        return optimizer

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The task's loss of one micro-batch; while training with all penalties, each once per optimizer step."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
        comparing = [part for part in self.regularizers if part.two_passes]
        if comparing:
            other, again = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
            there = inputs["labels"] != IGNORED
            items = there.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            first, second = _logits(outputs)[there], _logits(again)[there]
            loss = (loss + other) / 2 + sum(part.disagreement(first, second, items) for part in comparing)
        for penalty in self._penalties():
            loss = loss + penalty / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _penalties(self) -> Iterator[torch.Tensor]:
        if self.repeating:
            return
        for penalty in (self.setup.recipe.method.penalty(self.model), *(part.penalty() for part in self.regularizers)):
            if penalty is not None:
                yield penalty

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        checkpoint = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        save_tuned(self.model, self.setup.recipe.method, checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not restore_tuned(self.model, self.setup.recipe.method, Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not restore_tuned(self.model, self.setup.recipe.method, Path(str(self.state.best_model_checkpoint))):
            super()._load_best_model()

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch forward and backward.

        Raises:
            RunError: the loss is not finite, or, on the first step, a trainable parameter got no finite gradient.
        """
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise RunError(self._describe_loss(loss))
        if not self.gradients_checked:
            # GradScaler starts with a scale that overflows on purpose, so under fp16 only absence is a defect.
            check_gradients(self.model, finite=self.args.fp16 is False)
            self.gradients_checked = True
        for part in self.regularizers:
            part.after_backward(lambda: self._repeat(*args, **kwargs))
        return loss

    def _repeat(self, *args: Any, **kwargs: Any) -> None:
        self.repeating = True
        try:
            super().training_step(*args, **kwargs)
        finally:
            self.repeating = False

    def _describe_loss(self, loss: torch.Tensor) -> str:
        shown = ", ".join(self.setup.place("train", row) for row in self.batch_rows[:8])
        more = f" and {len(self.batch_rows) - 8} more" if len(self.batch_rows) > 8 else ""
        return (
            f"the loss became {loss.item()} at step {self.state.global_step + 1}, on this batch: {shown}{more}; "
            "look at these rows, lower training.learning_rate, or use training.precision: fp32"
        )


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: Mapping[torch.nn.Parameter, float]) -> None:
    """Split the groups of a fresh optimizer so that each parameter in `rates` has its own learning rate."""
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(rates.get(parameter, group["lr"]), []).append(parameter)
        groups += [{**group, "params": parameters, "lr": rate} for rate, parameters in by_rate.items()]
    optimizer.param_groups[:] = groups


def check_gradients(model: torch.nn.Module, *, finite: bool) -> None:
    """Every trainable parameter must have received a gradient.

    Args:
        finite: whether infinite or NaN gradients are errors too.

    Raises:
        RunError: names the parameters that have none.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise RunError("no parameter of the model is trainable; the tuning method has changed nothing")
    absent = [name for name, parameter in trainable if parameter.grad is None]
    if absent:
        raise RunError(
            f"{len(absent)} of {len(trainable)} trainable parameters got no gradient on the first step, so they would "
            f"never be trained: {_listed(absent)}; exclude them (method.target_modules) or choose another method"
        )
    broken = [name for name, parameter in trainable if not torch.isfinite(parameter.grad).all()]  # type: ignore[arg-type] # absent ones were named above
    if finite and broken:
        raise RunError(
            f"{len(broken)} of {len(trainable)} trainable parameters got infinite or NaN gradients on the first step: "
            f"{_listed(broken)}; lower training.learning_rate or use training.precision: fp32"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def build_trainer(setup: Setup, checkpoints: Path, *, callbacks: Sequence[TrainerCallback]) -> HookedTrainer:
    """The trainer of a run; checkpoints go to the folder `checkpoints`."""
    recipe = setup.recipe
    loss = recipe.loss
    assert loss is not None  # `completed` recipes name their loss

    def compute_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        # Many heads ignore num_items_in_batch and so scale accumulated gradients wrongly; our losses use it.
        return loss.compute(_logits(outputs), labels, num_items_in_batch)

    callbacks = list(callbacks)
    if "tensorboard" in recipe.training.report_to:
        # The engine's own choice of folder lies among the checkpoints, which go when the run is finished.
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        callbacks.append(TensorBoardCallback(SummaryWriter(str(checkpoints.parent / "tensorboard"))))
    if recipe.training.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(recipe.training.early_stopping_patience))
    trainer = HookedTrainer(
        model=setup.model,
        args=_arguments(setup, checkpoints),
        train_dataset=setup.features.get("train"),
        eval_dataset=setup.features.get(VALIDATION),
        data_collator=recipe.task.collator(setup.tokenizer),
        compute_loss_func=compute_loss,
        compute_metrics=_scorer(recipe),
        preprocess_logits_for_metrics=lambda logits, labels: logits[0] if isinstance(logits, tuple) else logits,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.setup = setup
    trainer.regularizers = tuple(part.start(setup.model) for part in recipe.regularizers)
    return trainer


def _logits(outputs: Any) -> torch.Tensor:
    logits: torch.Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
    return logits


def _scorer(recipe: Recipe) -> Callable[[EvalPrediction], dict[str, float]]:
    task: Task = recipe.task

    def score(output: EvalPrediction) -> dict[str, float]:
        scored = task.decode(output.predictions, output.label_ids)
        values: dict[str, float] = {}
        for metric in recipe.metrics:
            values |= metric.compute(scored.predictions, scored.references)
        return values

    return score


def total_steps(recipe: Recipe, rows: int, *, processes: int = 1) -> int:
    """Optimizer steps of the whole run."""
    training = recipe.training
    if training.max_steps is not None:
        return training.max_steps
    return math.ceil(training.epochs * steps_per_epoch(recipe, rows, processes=processes))


def steps_per_epoch(recipe: Recipe, rows: int, *, processes: int = 1) -> int:
    """Optimizer steps of one pass over the training rows."""
    training = recipe.training
    batches = math.ceil(rows / (training.batch_size * processes))
    return math.ceil(batches / training.accumulation_steps)


def _arguments(setup: Setup, checkpoints: Path) -> TrainingArguments:
    training = setup.recipe.training
    arguments = TrainingArguments(
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
    )
    if arguments.n_gpu > 1:
        # Without a launcher the engine would use nn.DataParallel, which is slower and breaks exact loss normalisation.
        arguments._n_gpu = 1
    return arguments


def _optimization(training: TrainingOptions) -> dict[str, Any]:
    return {
        "num_train_epochs": training.epochs,
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": training.batch_size,
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
    if VALIDATION not in setup.features:
        return cadence | {"eval_strategy": "no"}
    best = next(metric for metric in setup.recipe.metrics if metric.score_name == training.best_metric)
    return cadence | {
        "eval_strategy": cadence["save_strategy"],
        "eval_steps": cadence.get("save_steps"),
        "load_best_model_at_end": not setup.recipe.method.runs_to_the_end,
        "metric_for_best_model": f"eval_{best.score_name}",
        "greater_is_better": best.greater_is_better,
    }
