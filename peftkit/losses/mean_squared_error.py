"""Mean squared error."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from peftkit.labels import Targets
from peftkit.losses import Loss, losses

if TYPE_CHECKING:
    from torch import Tensor


@losses.register("mean_squared_error")
class MeanSquaredError(Loss):
    """(z - y)^2 averaged over rows: for regression."""

    targets: ClassVar[frozenset[Targets]] = frozenset({"numbers"})

    def compute(self, logits: Tensor, labels: Tensor, num_items: int | Tensor | None) -> Tensor:
        """Sum over rows, divided by `num_items`; see `Loss.compute`."""
        count = labels.numel() if num_items is None else num_items
        return (logits.float().reshape(labels.shape) - labels.float()).square().sum() / count
