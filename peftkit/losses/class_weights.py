"""Weights that let rare classes count as much as frequent ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import PositiveFloat

from peftkit.errors import DataError, RecipeError
from peftkit.labels import IGNORED, Targets
from peftkit.losses import Loss

if TYPE_CHECKING:
    from torch import Tensor

Weights = Literal["balanced"] | tuple[PositiveFloat, ...] | None


class WeightedLoss(Loss):
    """A loss over classes whose rows may count differently."""

    targets: ClassVar[frozenset[Targets]] = frozenset({"classes", "flags"})

    class_weights: Weights = None
    """Factor of each class, in class order; balanced: rows / (classes * rows of the class), from the training data, so
    that all classes count alike (King & Zeng 2001); none: every row counts once."""

    def fitted(self, labels: Sequence[Any], *, classes: int) -> Self:
        """With numbers in place of `balanced`; see `Loss.fitted`."""
        if self.class_weights is None:
            return self
        if isinstance(self.class_weights, tuple):
            if len(self.class_weights) != classes:
                raise RecipeError(
                    f"loss.class_weights has {len(self.class_weights)} numbers, the task has {classes} classes; give "
                    "one number for each, in class order"
                )
            return self
        counts = Counter(index for label in labels for index in _indices(label))
        absent = [index for index in range(classes) if not counts[index]]
        if absent:
            raise DataError(
                f"loss.class_weights is balanced, but class {absent[0]} has no training rows; remove it from "
                "task.labels, or give the weights as numbers"
            )
        rows = sum(counts.values())
        return self.model_copy(
            update={"class_weights": tuple(rows / (classes * counts[index]) for index in range(classes))}
        )

    def weights(self, like: Tensor) -> Tensor | None:
        """(classes,) float32 on the device of `like`; None: all alike."""
        import torch

        if self.class_weights is None:
            return None
        assert not isinstance(self.class_weights, str)  # a run has fitted it
        return torch.tensor(self.class_weights, dtype=torch.float32, device=like.device)


def _indices(label: Any) -> list[int]:
    """Class indices of one feature: a class, a class for each token, or a flag for each class."""
    if not isinstance(label, Sequence):
        return [int(label)]
    if any(isinstance(flag, float) for flag in label):
        return [index for index, flag in enumerate(label) if flag]
    return [int(index) for index in label if index != IGNORED]
