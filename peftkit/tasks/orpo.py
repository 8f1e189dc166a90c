"""Odds ratio preference optimization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from peftkit.tasks import Engine, tasks
from peftkit.tasks.pairs import PairTask, halves

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@tasks.register("orpo")
class OddsRatio(PairTask):
    """Learn the better of two answers, and raise its odds over those of the worse, with no base to compare with.

    Hong et al. 2024, arXiv:2403.07691. Rows have `prompt`, `chosen` and `rejected`, as texts or as turns.
    """

    beta: float = Field(0.1, gt=0)
    """Weight of the odds ratio beside the likelihood of the better answer; the paper's lambda."""

    @property
    def engine(self) -> Engine:
        """TRL's ORPOTrainer."""
        options = {
            "beta": self.beta,
            "disable_dropout": self.disable_dropout,
            "max_length": 2**30,  # of rows that TRL tokenizes
        }
        return Engine("ORPOTrainer", "ORPOConfig", options, module="trl.experimental.orpo")

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """Rows, and tokens of prompts with their better answers: TRL learns both."""
        import torch

        mask = batch["attention_mask"].chunk(2)[0]
        return torch.stack([super().items(batch).to(mask.device), mask[:, 1:].sum()])

    def engine_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """See `Task.engine_batch`."""
        return dict(halves(batch))

    def rewards(self, pairs: np.ndarray, base: np.ndarray) -> np.ndarray:
        """beta * mean log-likelihood of a token."""
        rewards: np.ndarray = self.beta * pairs[:, :, 0] / pairs[:, :, 1]
        return rewards
