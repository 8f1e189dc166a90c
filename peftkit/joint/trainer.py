"""The engine on several tasks: each micro-batch is computed, scored and named as its own task's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback, TrainerControl

from peftkit.errors import CapabilityError, RecipeError
from peftkit.joint.batches import TASK, MicroBatches, TaskRows, collator
from peftkit.joint.sharing import SharedModel
from peftkit.multi_task import MEAN, SEPARATOR, MultiTask
from peftkit.recipe import Recipe
from peftkit.training.engines import asked_callbacks, reads_answers
from peftkit.training.execution import Execution
from peftkit.training.prepare import PreparedData
from peftkit.training.regularization import Regularization
from peftkit.training.setup import VALIDATION, Setup, best_metric, engine_arguments
from peftkit.training.trainer import HookedTrainer

LOSS = "loss"


@dataclass(frozen=True)
class Share:
    """What a micro-batch counts in the loss of its optimizer step.

    Args:
        items: of its task in the step, see `Task.items`.
        batches: micro-batches of its task in the step.
        of_step: these over all of the step.
    """

    items: torch.Tensor
    batches: int
    of_step: float


class JointTrainer(HookedTrainer):
    """`HookedTrainer` whose `setup` is that of the task at hand.

    The loss of an optimizer step is the mean over its micro-batches of the loss of their tasks, where the loss of a
    task is divided by its own items in the step: how many micro-batches they are cut into does not matter.
    """

    setups: Mapping[str, Setup]
    executions: Mapping[str, Execution]
    task: str
    batches: MicroBatches
    share_of_step = 1.0
    losses: dict[str, list[tuple[torch.Tensor, float]]]
    """By task that was trained on, since the last point of the learning curve: parts of the loss of a step, each with
    its share of the step's micro-batches of this task."""

    def on(self, task: str) -> None:
        """Go on with a task."""
        self.task = task
        self.setup = self.setups[task]
        self.execution = self.executions[task]
        self.reads_answers = reads_answers(self.setup.recipe)

    def each(self) -> Iterator[tuple[str, PreparedData]]:
        """Every task with its rows, gone on with while it is looked at."""
        for task, setup in self.setups.items():
            self.on(task)
            yield task, setup.data

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.batches)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        shares = {}
        places = [int(batch[TASK]) for batch in batch_samples]
        for place in sorted(set(places)):
            self.on(list(self.setups)[place])
            own = [batch for batch in batch_samples if int(batch[TASK]) == place]
            items = super()._get_num_items_in_batch(own, device)
            assert items is not None
            shares[place] = Share(items, len(own), len(own) / len(batch_samples))
        return shares

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch of one task forward and backward; see `HookedTrainer.training_step`."""
        place = int(inputs.pop(TASK))
        task = list(self.setups)[place]
        share: Share = num_items_in_batch[place]
        self.on(task)
        self.gradients_checked = task in self.losses
        self.share_of_step = share.of_step
        loss = super().training_step(model, inputs, share.items)
        self.share_of_step = 1.0
        self.losses.setdefault(task, []).append((loss / share.of_step, 1 / share.batches))
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one micro-batch on the model of its task; see `HookedTrainer.compute_loss`."""
        loss, output = super().compute_loss(self.setup.model, inputs, True, num_items_in_batch)
        loss = loss * self.share_of_step
        return (loss, output) if return_outputs else loss

    def prediction_step(self, model: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, None, None]:
        """See `HookedTrainer.prediction_step`."""
        return super().prediction_step(self.setup.model, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Scores of every task on its validation rows, by task and metric, and their mean."""
        metrics: dict[str, float] = {}
        main: dict[str, float] = {}
        for task, data in self.each():
            loop = self.evaluation_loop(
                self.get_eval_dataloader(data.features[VALIDATION]),
                description="Evaluation",
                prediction_loss_only=True,
                metric_key_prefix="eval",
            )
            own = {key.removeprefix("eval_"): value for key, value in loop.metrics.items()}
            metrics |= {f"eval_{task}{SEPARATOR}{name}": value for name, value in own.items()}
            main[task] = own[best_metric(self.setup.recipe).score_name]
        metrics[f"eval_{MEAN}"] = mean(main)
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """A point of the learning curve, with the training loss of each task."""
        if LOSS in logs:
            for task, parts in self.losses.items():
                if parts:
                    steps = sum(share for _, share in parts)
                    logs[f"{task}{SEPARATOR}{LOSS}"] = float(sum(loss for loss, _ in parts)) / steps
                parts.clear()
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        Path(str(output_dir)).mkdir(parents=True, exist_ok=True)  # what trains is added to the checkpoint by itself


def mean(scores: Mapping[str, float]) -> float:
    """Mean over tasks."""
    return float(np.mean(list(scores.values())))


def check_scores(recipe: MultiTask, found: Mapping[str, tuple[Recipe, PreparedData]]) -> None:
    """Whether the tasks have the scores that are to choose the weights.

    Raises:
        RecipeError: some have no validation rows, or a mean of their metrics would mean nothing.
    """
    without = [task for task, (_, data) in found.items() if VALIDATION not in data.features]
    if without and len(without) < len(found):
        raise RecipeError(
            f"tasks.{without[0]}.data: gives no validation rows, and other tasks do; give all of them some (data."
            "hold_out takes them from the training rows), or none"
        )
    best = {task: best_metric(own) for task, (own, _) in found.items()}
    if recipe.best_metric == MEAN and not without and len({metric.greater_is_better for metric in best.values()}) > 1:
        listed = ", ".join(
            f"{task} {metric.score_name} ({'higher' if metric.greater_is_better else 'lower'})"
            for task, metric in best.items()
        )
        task, metric = next(iter(best.items()))
        raise RecipeError(
            f"training.best_metric: the mean of scores of which some are better when higher, others when lower, says "
            f"nothing: {listed}; name one, such as {task}{SEPARATOR}{metric.score_name}, or other tasks.*.metrics"
        )


def joint_trainer(
    recipe: MultiTask, setups: Mapping[str, Setup], checkpoints: Path, *, callbacks: Sequence[TrainerCallback]
) -> JointTrainer:
    """The trainer of several tasks, whose models share weights; checkpoints go to the folder `checkpoints`.

    Raises:
        RecipeError: an epoch has no micro-batch for one of the tasks.
        CapabilityError: it was started in several processes.
    """
    first = next(iter(setups.values()))
    arguments = engine_arguments(first, checkpoints)
    arguments.run_name = recipe.name
    arguments.per_device_train_batch_size = 1  # an entry is a micro-batch already
    if arguments.metric_for_best_model is not None:
        chosen = setups.get(recipe.best_metric.partition(SEPARATOR)[0], first)
        arguments.metric_for_best_model = f"eval_{recipe.best_metric}"
        arguments.greater_is_better = best_metric(chosen.recipe).greater_is_better
    if arguments.world_size > 1:
        raise CapabilityError("several tasks are trained together in one process only; start it without a launcher")
    if not first.recipe.training.frozen_dropout:
        raise RecipeError("training.frozen_dropout: tasks that train together share their blocks; remove it")
    batches = micro_batches(recipe, setups)
    trainer = JointTrainer(
        model=SharedModel({task: setup.model for task, setup in setups.items()}),
        args=arguments,
        train_dataset=batches,
        eval_dataset=first.data.features.get(VALIDATION),
        data_collator=collator([setup.recipe.task.collator(setup.data.tokenizer) for setup in setups.values()]),
        callbacks=[*callbacks, *asked_callbacks(recipe.training, checkpoints)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.setups, trainer.batches, trainer.losses = setups, batches, {}
    trainer.regularization = Regularization(first.model, ())
    trainer.executions = {
        task: Execution(setup, trainer.regularization, shares_blocks=True) for task, setup in setups.items()
    }
    trainer.on(next(iter(setups)))
    for setup in setups.values():  # the engine prepares the forward pass of the model that it knows, not of its parts
        trainer.accelerator.prepare_model(setup.model, device_placement=False, evaluation_mode=True)
    return trainer


def micro_batches(recipe: MultiTask, setups: Mapping[str, Setup]) -> MicroBatches:
    """What is trained on in an epoch; see `MicroBatches`."""
    training = recipe.training
    features = {task: setup.data.features["train"] for task, setup in setups.items()}
    rows = {
        task: TaskRows(found, training.batch_size, seed=recipe.seed, by_length=training.batching == "group_by_length")
        for task, found in features.items()
    }
    rates = recipe.sampling.rates(
        {task: len(found) for task, found in features.items()},
        {task: part.weight for task, part in recipe.tasks.items()},
    )
    draws = [task for task, setup in setups.items() if setup.recipe.task.draws]
    return MicroBatches(rows, rates, draws=draws, seed=recipe.seed)
