"""The trainers of TRL, with peftkit's hooks in front: TRL computes the loss, peftkit feeds, watches and scores.

Rows are tokenized by the task, so that TRL's own preparation is passed over. What the untuned model makes of them is
computed once, before training: no second model and no second adapter is held.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback

from peftkit.data.progress_bars import hidden_progress_bars
from peftkit.errors import CapabilityError, RecipeError
from peftkit.models import quiet_libraries
from peftkit.tasks import ROW, Engine
from peftkit.training.setup import VALIDATION, Setup, engine_arguments
from peftkit.training.trainer import HookedTrainer

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class LossOfTrl(HookedTrainer):
    """Stands before a trainer of TRL in a class made of both; see `trl_trainer`."""

    token_weight: torch.Tensor
    """Share of a micro-batch in the tokens of its step, over its share in the rows."""

    def _pass(self, model: Any, inputs: Mapping[str, Any], items: torch.Tensor) -> tuple[torch.Tensor, Any]:
        task = self.setup.recipe.task
        # TRL averages over the rows of a micro-batch; micro-batches of unequal size must not count alike.
        shares = (task.items(inputs).to(items.device) / items).reshape(-1)
        self.token_weight = shares[-1] / shares[0]
        loss = super(HookedTrainer, self).compute_loss(model, task.engine_batch(inputs)) * shares[0]
        output = None if model.training else task.forward(model, inputs)
        return loss, output

    def concatenated_forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """ORPO's, whose likelihood is a mean over tokens: weighed by these, not by rows."""
        parts = list(super().concatenated_forward(*args, **kwargs))
        parts[4] = parts[4] * self.token_weight
        return tuple(parts)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def tokenize_row(self, feature: Any, *args: Any, **kwargs: Any) -> Any:
        """The row as it is: it has been tokenized."""
        return feature

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: the run folder has its own."""

    def _send_telemetry(self) -> None:
        """None: what is trained stays here."""


class AnswersOfTrl(LossOfTrl):
    """Before a trainer of TRL that generates the answers it learns from; scored on answers of the task's own making."""

    def _prepare_inputs(self, inputs: Any) -> Any:
        if isinstance(inputs, Mapping):
            return Trainer._prepare_inputs(self, {name: part for name, part in inputs.items() if name != ROW})
        self.batch_rows = tuple(dict.fromkeys(row[ROW] for row in inputs))
        return super(HookedTrainer, self)._prepare_inputs(inputs)

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return _SeededByEpoch(super(HookedTrainer, self)._get_train_sampler(train_dataset), self.setup.recipe.seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return Trainer._get_eval_sampler(self, eval_dataset)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> None:
        return None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """TRL's, which is divided by the micro-batches or tokens of the step already."""
        loss: torch.Tensor = super(HookedTrainer, self).compute_loss(model, inputs)
        return loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """No loss, which needs several answers to a prompt; what the task reads of the batch is kept in `outputs`."""
        task = self.setup.recipe.task
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            generate = self.reads_answers or not self.is_in_train
            read = task.read(model, inputs, task.forward(model, inputs), generate=generate)
        self.outputs = [*self.outputs, *self.accelerator.gather_for_metrics(read, use_gather_object=True)]
        return None, None, None


class _SeededByEpoch(torch.utils.data.Sampler[int]):
    """TRL's sampler, its order decided by seed and epoch alone, so that a resumed run sees the same rows."""

    def __init__(self, sampler: Any, seed: int) -> None:
        self.sampler = sampler
        self.seed = seed

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; called by the engine."""
        self.sampler.generator.manual_seed(self.seed * 100_003 + epoch)

    def __len__(self) -> int:
        """Rows of an epoch, each as often as it is answered."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        """Row indices in the order of this epoch."""
        return iter(self.sampler)


class _NoReference(torch.nn.Module):
    """Given to TRL as the model to compare with, so that it makes none; never called."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.config = config


def trl_trainer(
    engine: Engine, setup: Setup, checkpoints: Path, *, callbacks: Sequence[TrainerCallback]
) -> HookedTrainer:
    """The trainer of a task that trains with TRL.

    Raises:
        CapabilityError: TRL refuses the model or the options; the message carries its reason.
    """
    recipe, features = setup.recipe, setup.data.features
    library = _imported(engine.module)
    trainer = getattr(library, engine.trainer)
    hooks = AnswersOfTrl if engine.makes_answers else LossOfTrl
    parts: dict[str, Any] = {"eval_dataset": features.get(VALIDATION)}
    if engine.makes_answers:
        _check_prompts(setup)
        parts["reward_funcs"] = recipe.task.reward_functions(setup.data.tokenizer)  # type: ignore[attr-defined] # of tasks whose engine says so
    else:
        parts["data_collator"] = recipe.task.collator(setup.data.tokenizer)
    if engine.mirrors_base:
        parts["ref_model"] = _NoReference(setup.model.config)
    try:
        with _float32_kept(setup.model), hidden_progress_bars(), quiet_libraries():
            arguments = engine_arguments(setup, checkpoints, kind=getattr(library, engine.arguments))
            made: HookedTrainer = type(f"Hooked{engine.trainer}", (hooks, trainer), {})(
                model=setup.model,
                args=arguments,
                train_dataset=features["train"],
                processing_class=setup.data.tokenizer,
                callbacks=list(callbacks),
                **parts,
            )
    except ValueError as problem:
        raise CapabilityError(f"TRL's {engine.trainer} refuses this recipe: {problem}") from problem
    if engine.mirrors_base:
        made.ref_model = None
    made.args.train_sampling_strategy = "random"  # KTO asks for another, for pairs that it would make itself
    return made


def _check_prompts(setup: Setup) -> None:
    training, rows = setup.recipe.training, len(setup.data.features["train"])
    prompts = training.batch_size * training.accumulation_steps // setup.recipe.task.draws_per_row
    if rows < prompts:
        raise RecipeError(
            f"training.batch_size: a step takes {prompts} prompts, and only whole steps are trained, but the training "
            f"split has {rows}; lower it or add rows"
        )


def _imported(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are importing from 'trl.experimental'")
        return import_module(module)


@contextmanager
def _float32_kept(model: torch.nn.Module) -> Iterator[None]:
    """Undo that TRL 1.16 rounds what trains on a quantized base to bfloat16, in which small updates are lost."""
    kept = {parameter: parameter.data for parameter in model.parameters() if parameter.requires_grad}
    yield
    for parameter, data in kept.items():
        if parameter.dtype != data.dtype:
            parameter.data = data.to(parameter.device)
