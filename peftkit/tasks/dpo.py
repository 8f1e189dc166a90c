"""Direct preference optimization, with the losses that have grown out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from peftkit.tasks import Engine, tasks
from peftkit.tasks.pairs import PairTask

if TYPE_CHECKING:
    import numpy as np

_SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
"""Losses that TRL smooths; the others pass over `label_smoothing`."""


@tasks.register("dpo")
class DirectPreference(PairTask):
    """Raise the likelihood of the better of two answers over the worse, measured against the base model.

    Rafailov et al. 2023, arXiv:2305.18290. Rows have `prompt`, `chosen` and `rejected`, as texts or as turns of a
    conversation.
    """

    loss_type: (
        Literal["sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"]
        | Literal["aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"]
    ) = "sigmoid"
    """Name of the loss in TRL; sigmoid is that of the paper. aot, aot_unpaired, bco_pair and sft compare the rows of a
    micro-batch with each other, or weigh them by their tokens, so that micro-batches do not add up to one batch."""
    beta: float = Field(0.1, gt=0)
    """How strongly the tuned model is held to the base; of ipo the paper's tau."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels taken to be wrong; of robust, exo_pair (needs some, e.g. 1e-3), aot and aot_unpaired."""

    @model_validator(mode="after")
    def _smoothing_fits(self) -> Self:
        if self.label_smoothing and self.loss_type not in _SMOOTHED:
            raise ValueError(
                f"label_smoothing has no effect on loss_type {self.loss_type!r}; it has on {', '.join(_SMOOTHED)}"
            )
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss_type 'exo_pair' needs label_smoothing above 0; its paper recommends 1e-3")
        return self

    @property
    def engine(self) -> Engine:
        """TRL's DPOTrainer."""
        options = {
            "loss_type": [self.loss_type],
            "beta": self.beta,
            "label_smoothing": self.label_smoothing,
            "disable_dropout": self.disable_dropout,
            "max_length": None,
            "precompute_ref_log_probs": True,
        }
        return Engine("DPOTrainer", "DPOConfig", options, mirrors_base=True)

    def rewards(self, pairs: np.ndarray, base: np.ndarray) -> np.ndarray:
        """beta * log(tuned / base), the paper's implicit reward (section 4, equation 5) up to a constant."""
        rewards: np.ndarray = self.beta * (pairs[:, :, 0] - base)
        return rewards
