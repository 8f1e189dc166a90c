"""How the steps of a run are computed, where that is left to the engine: the same maths in less time and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from peftkit.tasks import TokenScores
from peftkit.training.execution.fused_lora import FusedLora
from peftkit.training.execution.label_logits import LabelLogits
from peftkit.training.execution.padding import WithoutPadding
from peftkit.training.execution.part import Part
from peftkit.training.execution.recomputation import CheapRecomputation
from peftkit.training.execution.trunk_cache import TrunkCache
from peftkit.training.regularization import Regularization
from peftkit.training.setup import Setup


class Execution:
    """What is done to the model of a run to compute its steps faster, until `remove`.

    Args:
        setup: the run.
        regularization: what is added to its loss.
        shares_blocks: whether other tasks train the same blocks at the same time.
    """

    def __init__(self, setup: Setup, regularization: Regularization, *, shares_blocks: bool = False) -> None:
        self.labels = LabelLogits(setup, regularization)
        padding = WithoutPadding(setup)
        self.parts: list[Part] = [padding, self.labels, FusedLora(setup), CheapRecomputation(setup)]
        # It tries the model as the others leave it.
        self.parts.append(TrunkCache(setup, shares_blocks=shares_blocks, first_only=padding.first_only))

    def loss(self, model: Any, batch: Mapping[str, Any], items: Tensor) -> Tensor | None:
        """See `LabelLogits.loss`."""
        return self.labels.loss(model, batch, items)

    def scored(self, model: Any, batch: Mapping[str, Any], items: Tensor) -> tuple[Tensor, TokenScores] | None:
        """See `LabelLogits.scored`."""
        return self.labels.scored(model, batch, items)

    def described(self) -> Mapping[str, str]:
        """What was done, and why what was not done was not, by its name, for the report."""
        return {part.name: part.described() for part in self.parts}

    def flush(self) -> None:
        """Write what is kept for a resumed run."""
        for part in self.parts:
            part.flush()

    def remove(self) -> None:
        """Leave the model as plain libraries know it."""
        self.flush()
        for part in reversed(self.parts):
            part.remove()
