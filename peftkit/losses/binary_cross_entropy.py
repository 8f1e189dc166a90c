"""Binary cross-entropy for each label on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from peftkit.labels import Targets
from peftkit.losses import Loss, losses

if TYPE_CHECKING:
    from torch import Tensor


@losses.register("binary_cross_entropy")
class BinaryCrossEntropy(Loss):
    """-[y log s(z) + (1 - y) log(1 - s(z))], averaged over rows and labels: for multi-label classification."""

    targets: ClassVar[frozenset[Targets]] = frozenset({"flags"})

    def compute(self, logits: Tensor, labels: Tensor, num_items: int | Tensor | None) -> Tensor:
        """Sum over all (rows, labels) entries, divided by `num_items`; see `Loss.compute`."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        count = labels.numel() if num_items is None else num_items
        return binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="sum") / count
