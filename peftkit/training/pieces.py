"""Batches that do not fit into memory are computed in pieces, whose gradients add up to those of the batch."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from peftkit.errors import RunError
from peftkit.regularizers.random_state import random_state, set_random_state
from peftkit.tasks import Collator
from peftkit.training.execution.part import Part

FEATURES = "features"
"""Entry of a batch with the features that it was collated of."""
STATE_FILE = "pieces.json"
_NO_MEMORY = "can't allocate memory"  # what a CPU says, in a plain RuntimeError


@dataclass(frozen=True)
class Features:
    """Features of a batch, in a shape that the engine leaves as it is."""

    each: list[dict[str, Any]]


def with_features(collate: Collator) -> Collator:
    """A collator that also keeps what it was given."""
    return lambda features: {**collate(features), FEATURES: Features(features)}


class Pieces(Part):
    """Computes batches whole as long as they fit, and halves those that do not.

    Once a batch did not fit, those that are as large are cut at once. What the first attempt has changed, gradients and
    the state of random draws, is put back.

    Args:
        model: whose gradients are computed.
        collate: makes a batch of some features.
    """

    name: ClassVar[str] = "micro_batch"

    def __init__(self, model: torch.nn.Module, collate: Collator) -> None:
        self.model = model
        self.collate = collate
        self.limit: int | None = None
        """Values, padding included, that a piece may have; None: nothing was too large yet."""
        self.cut = 0

    def compute(self, batch: Mapping[str, Any], step: Callable[[Mapping[str, Any], bool], Tensor]) -> Tensor:
        """The loss of a batch, its gradients added to those that are there.

        Args:
            batch: with `FEATURES`.
            step: makes forward and backward pass of a piece; told whether it is the first of its batch.

        Raises:
            RunError: memory does not suffice for a single row.
        """
        whole = {name: value for name, value in batch.items() if name != FEATURES}
        features = batch[FEATURES].each
        waiting = self._pieces(features, size_of(whole))
        losses: list[Tensor] = []
        while waiting:
            piece = waiting.pop(0)
            inputs = whole if len(piece) == len(features) else self.collate(piece)
            loss = self._attempt(inputs, step, is_first=not losses)
            if loss is not None:
                losses.append(loss)
                continue
            if len(piece) == 1:
                raise RunError(
                    f"memory does not suffice for a single row of {size_of(inputs)} tokens; lower model.max_length, "
                    "set  training.gradient_checkpointing: true  or choose a smaller model"
                )
            self.limit = size_of(inputs) // 2
            half = math.ceil(len(piece) / 2)
            waiting = [piece[:half], piece[half:], *waiting]
        self.cut += len(losses) > 1
        return torch.stack(losses).sum()

    def _pieces(self, features: list[dict[str, Any]], size: int) -> list[list[dict[str, Any]]]:
        count = 1 if self.limit is None else min(math.ceil(size / self.limit), len(features))
        rows = math.ceil(len(features) / count)
        return [features[start : start + rows] for start in range(0, len(features), rows)]

    def _attempt(
        self, inputs: Mapping[str, Any], step: Callable[[Mapping[str, Any], bool], Tensor], *, is_first: bool
    ) -> Tensor | None:
        """The loss; None, and nothing changed, where memory does not suffice."""
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        before = [weight.grad for weight in trained]
        draws = random_state()
        for weight in trained:
            weight.grad = None
        loss = None
        try:
            loss = step(inputs, is_first)
        except RuntimeError as problem:  # torch.OutOfMemoryError is one
            if not isinstance(problem, torch.OutOfMemoryError) and _NO_MEMORY not in str(problem):
                raise
        if loss is None:  # here, and not above: the exception holds on to all that was computed
            for weight, gradient in zip(trained, before, strict=True):
                weight.grad = gradient
            set_random_state(draws)
            gc.collect()
            torch.cuda.empty_cache()
            return None
        for weight, gradient in zip(trained, before, strict=True):
            if gradient is not None:
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        return loss

    def save(self, checkpoint: Path) -> None:
        """Add to a checkpoint what was found, so that a resumed run cuts the same batches."""
        (checkpoint / STATE_FILE).write_text(json.dumps({"limit": self.limit, "cut": self.cut}), "utf-8")

    def restore(self, checkpoint: Path) -> None:
        """Take up what `save` wrote."""
        found = json.loads((checkpoint / STATE_FILE).read_text("utf-8"))
        self.limit, self.cut = found["limit"], found["cut"]

    def described(self) -> str:
        """See `Part.described`."""
        if self.limit is None:
            return "on: all batches fit into memory"
        return f"on: {self.cut} batches were computed in pieces of at most {self.limit} tokens, padding included"


def size_of(batch: Mapping[str, Any]) -> int:
    """Values of the largest tensor of a batch."""
    return max(value.numel() for value in batch.values() if isinstance(value, Tensor))
