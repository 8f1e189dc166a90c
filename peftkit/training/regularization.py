"""The regularizers of a run at work: what the engine has to do for them, and what is kept of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peftkit.regularizers import AtWork, Pass
from peftkit.regularizers.substitution import substituted

STATE_FILE = "regularizers.safetensors"
"""In a checkpoint: what regularizers keep from step to step, by their position in the recipe."""


class Regularization(TrainerCallback):
    """Several regularizers on one model."""

    def __init__(self, model: PreTrainedModel, parts: Sequence[AtWork]) -> None:
        self.model = model
        self.parts = tuple(parts)
        self.loss_share = math.prod(part.loss_share for part in parts)

    def begin(self, look: Callable[[], Tensor]) -> None:
        """See `AtWork.begin`."""
        for part in self.parts:
            part.begin(look)

    def labels(self, labels: Tensor) -> Iterator[tuple[float, Tensor]]:
        """What a training pass is compared with; see `AtWork.labels`."""
        found: list[tuple[float, Tensor]] = [(1.0, labels)]
        for part in self.parts:
            found = [(share * other, new) for share, old in found for other, new in part.labels(old)]
        yield from found

    def compared(self, loss: Tensor, logits: Callable[[], Tensor], again: Callable[[], Pass], items: Tensor) -> Tensor:
        """`loss` of a micro-batch with all that is added to it; see `AtWork.addition`."""
        comparing = [part for part in self.parts if part.compares]
        if not comparing:
            return loss
        first = Pass(loss, logits())
        return loss + torch.stack([part.addition(first, again, items) for part in comparing]).sum()

    def penalties(self) -> Iterator[Tensor]:
        """What is added to the loss of an optimizer step."""
        for part in self.parts:
            penalty = part.penalty()
            if penalty is not None:
                yield penalty

    def after_backward(self, again: Callable[[], object]) -> None:
        """See `AtWork.after_backward`."""
        for part in self.parts:
            part.after_backward(again)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """See `AtWork.after_step`; the engine evaluates and saves only afterwards."""
        for part in self.parts:
            part.after_step(state.global_step, state.max_steps)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model is computed with the weights that are to be evaluated and saved."""
        with substituted(self.model, self._averages()):
            yield

    def finish(self) -> None:
        """Give the model the weights that are saved."""
        with torch.no_grad():
            for weight, average in self._averages().items():
                weight.copy_(average)

    def _averages(self) -> dict[torch.nn.Parameter, Tensor]:
        return {weight: average for part in self.parts for weight, average in part.averages().items()}

    def save(self, checkpoint: Path) -> None:
        """Add their state to a checkpoint."""
        states = {
            f"{position}.{name}": tensor.contiguous()
            for position, part in enumerate(self.parts)
            for name, tensor in part.state().items()
        }
        if states:
            save_file(states, checkpoint / STATE_FILE)

    def restore(self, checkpoint: Path) -> None:
        """Take up the state in a checkpoint; one that needs none writes none."""
        path = checkpoint / STATE_FILE
        saved = load_file(path, device=str(self.model.device)) if path.is_file() else {}
        for position, part in enumerate(self.parts):
            prefix = f"{position}."
            state = {name.removeprefix(prefix): tensor for name, tensor in saved.items() if name.startswith(prefix)}
            if state:
                part.restore(state)
