"""Losses: what training minimises, as a function of logits and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftkit.labels import Targets
from peftkit.registry import Component, Registry

if TYPE_CHECKING:
    from torch import Tensor


class Loss(Component):
    """A differentiable penalty of logits against labels."""

    targets: ClassVar[frozenset[Targets]] = frozenset({"classes", "flags", "numbers"})
    """Kinds of labels it compares with."""

    def fitted(self, labels: Sequence[Any], *, classes: int) -> Self:
        """This loss with everything filled in that depends on the training data.

        Args:
            labels: of all training features, as the task encodes them.
            classes: how many there are; 0 for regression.

        Raises:
            RecipeError: it does not fit these labels.
        """
        return self

    def compute(self, logits: Tensor, labels: Tensor, num_items: int | Tensor | None) -> Tensor:
        """Scalar loss of one batch.

        Args:
            logits: (rows, labels) of any float type; computed in float32.
            labels: (rows,) int64 class indices, or (rows, labels) / (rows,) float targets.
            num_items: how many label values the whole optimizer step holds, all micro-batches and devices together.
                The sum is divided by it, so that k micro-batches give the gradient of one large batch even when their
                sizes differ; None divides by this batch's own count.
        """
        raise NotImplementedError


losses: Registry[Loss] = Registry("peftkit.losses", "loss")
