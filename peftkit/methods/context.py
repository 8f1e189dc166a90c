"""What a tuning method may know about the run, and what it can add to another method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

Batches = Callable[[], Iterator[Mapping[str, "Tensor"]]]


@dataclass(frozen=True)
class TuningContext:
    """What a method may know about the run.

    Args:
        peft_task_type: peft's `TaskType` name, or None.
        head_modules: names of the modules that are new to the base model: always trained and saved, never targets.
        total_steps: optimizer steps of the whole run.
        steps_per_epoch: optimizer steps of one pass over the training rows; None: not known.
        base_bits: bits in which the base stores a weight of a linear layer: 32, 16, 8 or 4.
        gradient_checkpointing: whether activations are computed again in the backward pass.
        extra_modules: further modules that are trained whole and saved, asked for by a method stacked with this one.
        new_token_ids: rows of the input embedding that train, asked for by a method stacked with this one.
        batches: gives training batches without labels, on the model's device, in a fixed order, for initialisations
            that look at data; None where there are none (when a saved adapter is loaded, or only checked).
        tokenizer: as the run uses it.
    """

    peft_task_type: str | None
    head_modules: tuple[str, ...]
    total_steps: int
    steps_per_epoch: int | None = None
    base_bits: int = 32
    gradient_checkpointing: bool = False
    extra_modules: tuple[str, ...] = ()
    new_token_ids: tuple[int, ...] = ()
    batches: Batches | None = None
    tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def modules_to_save(self) -> list[str] | None:
        """What peft's option of that name needs: heads and extra modules, or None if there are none."""
        return [*self.head_modules, *self.extra_modules] or None

    @property
    def base(self) -> str:
        """The base in words, for messages."""
        return f"{'an' if self.base_bits == 8 else 'a'} {self.base_bits}-bit base"


@dataclass(frozen=True)
class Addition:
    """What a method trains when it is added to another.

    Args:
        modules: modules of the base that train as a whole.
        new_token_ids: rows of the input embedding that train.
    """

    modules: tuple[str, ...] = ()
    new_token_ids: tuple[int, ...] = ()
