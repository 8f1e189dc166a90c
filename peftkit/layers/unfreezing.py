"""Unfreezing a model from the top while it trains (ULMFiT, arXiv:1801.06146, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peftkit.errors import CapabilityError
from peftkit.layers.depth import unfreezing_stages


class Unfreeze(TrainerCallback):
    """Before each step, lets just those weights train whose stage has come; decided by the step's number alone.

    The optimizer holds all weights from the start; it passes over those without a gradient. A resumed run continues in
    the stage in which it was stopped.

    Args:
        blocks_per_stage: blocks that begin to train together.
        every: steps of one stage, `epoch`, or `even`: stages of equal length over the whole run.
    """

    def __init__(self, *, blocks_per_stage: int, every: int | str) -> None:
        self.blocks_per_stage = blocks_per_stage
        self.every = every
        self.stages: list[list[str]] = []
        self.steps_per_stage = 0
        self.open = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Freeze all but the stages that have begun.

        Raises:
            CapabilityError: the run ends before the last stage begins.
        """
        self.stages = unfreezing_stages(model, blocks_per_stage=self.blocks_per_stage)
        if isinstance(self.every, int):
            self.steps_per_stage = self.every
        elif self.every == "even":
            self.steps_per_stage = state.max_steps // len(self.stages)
        else:
            self.steps_per_stage = _steps_per_epoch(train_dataloader, args.gradient_accumulation_steps)
        if problem := too_short(len(self.stages), self.steps_per_stage, total_steps=state.max_steps):
            raise CapabilityError(problem)
        self.open = 0
        model.requires_grad_(False)
        self._open(model, state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Let the next stage train, where its time has come."""
        self._open(model, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Leave the whole model trainable, as it was found."""
        model.requires_grad_(True)

    def _open(self, model: Any, step: int) -> None:
        begun = min(len(self.stages), 1 + step // self.steps_per_stage)
        for stage in self.stages[self.open : begun]:
            for name in stage:
                model.get_parameter(name).requires_grad_(True)
        self.open = begun


def too_short(stages: int, steps_per_stage: int, *, total_steps: int) -> str | None:
    """Why a run of so many optimizer steps never trains the whole model, with what to do; None if it does."""
    if steps_per_stage > 0 and (stages - 1) * steps_per_stage < total_steps:
        return None
    needed = max(1, steps_per_stage) * (stages - 1) + 1
    return (
        f"gradual unfreezing has {stages} stages here; at {max(1, steps_per_stage)} steps each the last begins with "
        f"step {needed}, but the run has {total_steps}: train longer, lower method.every, or raise "
        "method.blocks_per_stage"
    )


def _steps_per_epoch(batches: Sized, accumulation_steps: int) -> int:
    return math.ceil(len(batches) / accumulation_steps)
