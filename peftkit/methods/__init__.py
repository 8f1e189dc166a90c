"""Tuning methods: which weights train, and what is added to the model so that few have to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftkit.registry import Component, Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerCallback


@dataclass(frozen=True)
class TuningContext:
    """What a method may know about the run.

    Args:
        peft_task_type: peft's `TaskType` name, or None.
        head_modules: names of the modules that are new to the base model: always trained and saved, never targets.
        total_steps: optimizer steps of the whole run.
    """

    peft_task_type: str | None
    head_modules: tuple[str, ...]
    total_steps: int


class TuningMethod(Component):
    """Which weights train."""

    trains_base_weights: ClassVar[bool] = False
    """Whether weights of the base model itself change; such a method needs an unquantized base."""
    mergeable: ClassVar[bool] = False
    """Whether the result can be folded into the base weights without changing outputs."""
    default_learning_rate: ClassVar[float]

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model with just those weights trainable that this method tunes; changes `model` in place.

        Raises:
            CapabilityError: the method does not fit this architecture.
        """
        raise NotImplementedError

    def callbacks(self) -> Sequence[TrainerCallback]:
        """What the method needs to do while training runs."""
        return ()


methods: Registry[TuningMethod] = Registry("peftkit.methods", "tuning method")
