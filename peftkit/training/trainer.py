"""The engine: `transformers.Trainer` with peftkit's hooks. The only file that knows its signature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer

from peftkit.errors import RecipeError, RunError
from peftkit.metrics import Metric
from peftkit.outputs import labelled_logits
from peftkit.regularizers import Pass
from peftkit.tasks import ROW, Collator, Scored
from peftkit.training.batching import LengthGroupedSampler, token_lengths
from peftkit.training.checkpoints import restore_tuned, save_tuned
from peftkit.training.distillation import Distilling, attended_tokens
from peftkit.training.execution import Execution
from peftkit.training.pieces import Pieces
from peftkit.training.regularization import Regularization
from peftkit.training.setup import VALIDATION, Setup


class HookedTrainer(Trainer):
    """`Trainer` that trains and reads as the task says, knows the rows of a batch, checks the first gradients and stops
    at a loss that is no number."""

    setup: Setup
    loss_is_scaled_for_ga = True
    outputs: Sequence[Any] = ()
    """What the task has read of every feature in the last evaluation."""
    reads_answers = False
    """Whether answers are generated in evaluations that only watch the training."""
    regularization: Regularization
    execution: Execution
    distilling: Distilling | None = None
    repeating = False
    """Whether the pass that is under way is one more over a batch, so that penalties are counted already."""
    pieces: Pieces | None = None
    """What computes batches that do not fit into memory; None: they have to."""
    batch_rows: tuple[int, ...] = ()
    gradients_checked = False
    data_collator: Collator

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = dict(inputs)
        rows = inputs.pop(ROW, None)
        if rows is not None:
            self.batch_rows = tuple(rows.tolist())
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        training = self.setup.recipe.training
        if training.batch_tokens is not None:
            return SequentialSampler(self.train_dataset)
        if training.batching == "random":
            return super()._get_train_sampler(train_dataset)
        lengths = token_lengths(self.setup.data.features["train"], self.setup.recipe.task)
        # The engine's own sampler draws from the global random state, so a resumed run would see other rows.
        return LengthGroupedSampler(lengths, training.batch_size, seed=self.setup.recipe.seed)

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> Any:
        # The data loader passes the epoch on to its data set on one device only.
        if hasattr(self.train_dataset, "set_epoch"):
            self.train_dataset.set_epoch(epoch)
        return super()._run_epoch(*args, epoch=epoch, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The engine's optimizer, with the learning rates of the tuning method where those differ."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if is_new:
            rates = self.setup.recipe.method.learning_rates(self.model, learning_rate=self.args.learning_rate)
            set_learning_rates(optimizer, {self.model.get_parameter(name): rate for name, rate in rates.items()})
            if self.distilling is not None:
                self.distilling.train_with(optimizer)
        return optimizer

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        # The engine counts labels where they stand; a task may compare them elsewhere, or with more than one divisor.
        if self.distilling is not None:
            self.distilling.tokens = self._total([attended_tokens(batch) for batch in batch_samples], device)
        return self._total([self.setup.recipe.task.items(batch) for batch in batch_samples], device)

    def _total(self, counts: list[torch.Tensor], device: torch.device) -> torch.Tensor:
        """Of all micro-batches and devices."""
        total = torch.stack(counts).sum(dim=0).to(device).clamp(min=1)
        if self.args.world_size > 1:
            everywhere: torch.Tensor = self.accelerator.gather(total[None])
            total = everywhere.sum(dim=0)
        return total

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The task's loss of one micro-batch; while training with all penalties, each once per optimizer step."""
        task = self.setup.recipe.task
        items = task.items(inputs).clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        loss, outputs = self._pass(model, inputs, items)

        def again() -> Pass:
            other, output = self._pass(model, inputs, items)
            return Pass(other, labelled_logits(output, inputs, task=task))

        if model.training:
            labelled = items.reshape(-1)[0]  # a task with several divisors has that of its labels first
            loss = self.regularization.compared(
                loss, lambda: labelled_logits(outputs, inputs, task=task), again, labelled
            )
            loss = loss * self.regularization.loss_share
        # Devices average their gradients, and the loss was divided by the items of all.
        loss = loss * self.accelerator.num_processes
        if model.training and not self.repeating:
            for penalty in self._penalties():
                loss = loss + penalty / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _pass(self, model: Any, inputs: Mapping[str, Any], items: torch.Tensor) -> tuple[torch.Tensor, Any]:
        task = self.setup.recipe.task
        if model.training and (loss := self.execution.loss(model, inputs, items)) is not None:
            return loss, None
        if not model.training and (scored := self.execution.scored(model, inputs, items)) is not None:
            return scored
        distilling = self.distilling if model.training else None
        with nullcontext() if distilling is None else distilling.watching():
            output = task.forward(model, inputs)
        if not model.training or "labels" not in inputs:
            return task.loss(output, inputs, criterion=self.setup.criterion, items=items), output
        losses = [
            share * task.loss(output, {**inputs, "labels": labels}, criterion=self.setup.criterion, items=items)
            for share, labels in self.regularization.labels(inputs["labels"])
        ]
        loss = torch.stack(losses).sum()
        return loss if distilling is None else distilling.loss(loss, output, inputs, items=items), output

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, None, None]:
        """The loss of one batch; what the task reads of it is kept in `outputs`."""
        task = self.setup.recipe.task
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
            read = task.read(model, inputs, output, generate=self.reads_answers or not self.is_in_train)
        self.outputs = [*self.outputs, *self.accelerator.gather_for_metrics(read, use_gather_object=True)]
        return loss.detach() / self.accelerator.num_processes, None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The engine's, with the scores of what the task has read."""
        self.outputs = []
        with self.regularization.averaged() if self.is_in_train else nullcontext():
            loop = super().evaluation_loop(*args, **kwargs)
        if self.is_in_train:
            scored = self.setup.recipe.task.decode(self.outputs, self.setup.data.encoded(VALIDATION))
            watched = [part for part in self.setup.recipe.metrics if self.reads_answers or not part.needs_answers]
            loop.metrics.update({f"eval_{name}": value for name, value in scores(watched, scored).items()})
        return loop

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The engine's, with the task's collator for evaluation."""
        with self._evaluation_batches():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """The engine's, with the task's collator for evaluation."""
        with self._evaluation_batches():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _evaluation_batches(self) -> Iterator[None]:
        training = self.data_collator
        self.data_collator = self.setup.recipe.task.evaluation_collator(self.setup.data.tokenizer)
        try:
            yield
        finally:
            self.data_collator = training

    def _penalties(self) -> Iterator[torch.Tensor]:
        penalty = self.setup.recipe.method.penalty(self.model)
        if penalty is not None:
            yield penalty
        yield from self.regularization.penalties()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        checkpoint = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        save_tuned(self.model, self.setup.recipe.method, checkpoint)
        self.regularization.save(checkpoint)
        self.execution.flush()
        if self.pieces is not None:
            self.pieces.save(checkpoint)
        if self.distilling is not None:
            self.distilling.save(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not restore_tuned(self.model, self.setup.recipe.method, Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.regularization.restore(Path(resume_from_checkpoint))
        if self.pieces is not None:
            self.pieces.restore(Path(resume_from_checkpoint))
        if self.distilling is not None:
            self.distilling.restore(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        if not restore_tuned(self.model, self.setup.recipe.method, best):
            super()._load_best_model()
        self.regularization.restore(best)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch forward and backward, with all the passes over it that regularizers make.

        Returns:
            The loss of all passes whose gradients count.

        Raises:
            RunError: the loss is not finite, or, on the first step, a trainable parameter got no finite gradient.
        """
        self.regularization.begin(lambda: self._look(*args, **kwargs))
        losses = [self._finite_step(*args, **kwargs)]
        if not self.gradients_checked:
            # GradScaler starts with a scale that overflows on purpose, so under fp16 only absence is a defect.
            check_gradients(self.setup.model, finite=self.args.fp16 is False)
            self.gradients_checked = True
        with self._repeating():
            self.regularization.after_backward(lambda: losses.append(self._finite_step(*args, **kwargs)))
        return torch.stack(losses).sum()

    def _finite_step(self, model: Any, inputs: Any, items: Any = None) -> torch.Tensor:
        step = super().training_step

        def compute(batch: Any, is_first: bool = True) -> torch.Tensor:
            with nullcontext() if is_first else self._repeating():
                loss: torch.Tensor = step(model, batch, items)
            if not torch.isfinite(loss):
                raise RunError(self._describe_loss(loss))
            return loss

        return compute(inputs) if self.pieces is None else self.pieces.compute(inputs, compute)

    def _look(self, model: Any, inputs: dict[str, Any], items: torch.Tensor) -> torch.Tensor:
        """The loss of a pass that gives no gradients by itself, scaled as for the backward pass."""
        self.model.train()
        with self._repeating(), self.compute_loss_context_manager():
            loss: torch.Tensor = self.compute_loss(self.model, self._prepare_inputs(inputs), num_items_in_batch=items)
        return loss if self.accelerator.scaler is None else self.accelerator.scaler.scale(loss)

    @contextmanager
    def _repeating(self) -> Iterator[None]:
        before, self.repeating = self.repeating, True
        try:
            yield
        finally:
            self.repeating = before

    def _describe_loss(self, loss: torch.Tensor) -> str:
        shown = ", ".join(self.setup.data.place("train", row) for row in self.batch_rows[:8])
        more = f" and {len(self.batch_rows) - 8} more" if len(self.batch_rows) > 8 else ""
        where = f", on this batch: {shown}{more}; look at these rows" if shown else "; look at the rows"
        return (
            f"the loss became {loss.item()} at step {self.state.global_step + 1}{where}, lower training.learning_rate, "
            "or use training.precision: fp32"
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


def compared(metric: Metric, scored: Scored) -> tuple[Any, Any]:
    """What a metric compares: predictions with references, or numbers that speak for themselves."""
    if metric.measures == "answers":
        return scored.predictions, scored.references
    measured = getattr(scored, metric.measures)
    if measured is None:
        raise RecipeError(f"metrics: {metric.name!r} needs {metric.measured}, which the task does not have; remove it")
    return measured, measured[:, 1] if metric.measures == "likelihood" else measured


def scores(chosen: Sequence[Metric], scored: Scored) -> dict[str, float]:
    """The values of some metrics by name."""
    values: dict[str, float] = {}
    for metric in chosen:
        values |= metric.compute(*compared(metric, scored))
    return values
