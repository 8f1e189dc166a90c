"""Regularizers: what keeps training from fitting too closely, by a change of the objective or of the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from peftkit.labels import Targets
from peftkit.registry import Component, Registry

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class AtWork:
    """A regularizer on one model, for one run. It does nothing while the model is in evaluation mode."""

    two_passes = False
    """Whether it compares two passes over each batch."""

    def penalty(self) -> Tensor | None:
        """What is added to the loss of every optimizer step; None: nothing."""
        return None

    def disagreement(self, first: Tensor, second: Tensor, num_items: int | Tensor) -> Tensor:
        """What is added to the mean loss of two passes over a batch; asked of one with `two_passes` only.

        Args:
            first: logits (positions, classes) of a pass, at positions that have a label.
            second: of another, whose dropout differs.
            num_items: what the sum is divided by; see `Loss.compute`.
        """
        raise NotImplementedError

    def after_backward(self, again: Callable[[], object]) -> None:
        """Called when a micro-batch has given its gradients; `again` adds those of another pass over it."""


class Regularizer(Component):
    """A change of the objective, or of the step."""

    paper: ClassVar[str] = ""
    """Where it comes from: authors, year, arXiv number."""
    targets: ClassVar[frozenset[Targets]] = frozenset({"classes", "flags", "numbers", "pairs", "own"})
    """Kinds of labels it works with; see `Loss.targets`."""

    def start(self, model: PreTrainedModel) -> AtWork:
        """Set it to work on a model that is about to be trained."""
        raise NotImplementedError


regularizers: Registry[Regularizer] = Registry("peftkit.regularizers", "regularizer")
