"""Losses: what training minimises, as a function of logits and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftkit.errors import RecipeError
from peftkit.registry import Component, Registry

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Class index of positions that have no label."""


class Loss(Component):
    """A differentiable penalty of logits against labels."""

    targets: ClassVar[frozenset[str]] = frozenset({"classes", "flags", "numbers"})
    """Kinds of labels it compares with: a class per position, a flag per class, a number."""

    def fitted(self, labels: Sequence[Any], *, classes: int) -> Self:
        """This loss with everything filled in that depends on the training data.

        Args:
            labels: of all training features, as the task encodes them.
            classes: how many there are; 0 for regression.

        Raises:
            RecipeError: it does not fit these labels.
        """
        kind = kind_of(labels[0]) if len(labels) else None
        if kind is not None and kind not in self.targets:
            able = " or ".join(sorted(self.targets))
            raise RecipeError(
                f"loss {self.name!r} compares with {able}, and the task's labels are {kind}; remove  loss  from the "
                "recipe, or choose another"
            )
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


def kind_of(label: Any) -> str:
    """What a label is, as a task encodes it: classes (one, or one for each token), flags, or numbers."""
    nested = isinstance(label, Sequence)
    value = next(iter(label), 0) if nested else label
    if isinstance(value, float):
        return "flags" if nested else "numbers"
    return "classes"


losses: Registry[Loss] = Registry("peftkit.losses", "loss")
