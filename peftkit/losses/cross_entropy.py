"""Cross-entropy over classes, with class weights and label smoothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.labels import IGNORED, Targets
from peftkit.losses import losses
from peftkit.losses.class_weights import WeightedLoss

if TYPE_CHECKING:
    from torch import Tensor


@losses.register("cross_entropy")
class CrossEntropy(WeightedLoss):
    """-log p(label), for single-label classification."""

    targets: ClassVar[frozenset[Targets]] = frozenset({"classes"})

    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    """Share e of the target spread evenly over all K classes: q(k) = (1 - e) [k = label] + e / K.
    (Szegedy et al. 2016, arXiv:1512.00567, section 7)"""

    def compute(self, logits: Tensor, labels: Tensor, num_items: int | Tensor | None) -> Tensor:
        """Sum over positions whose label is not -100, divided by `num_items`; see `Loss.compute`.

        With class weights too it is divided by the number of positions, not by the sum of their weights.
        """
        from torch.nn.functional import cross_entropy

        counted = labels != IGNORED
        count = counted.sum().clamp(min=1) if num_items is None else num_items
        summed = cross_entropy(
            logits[counted].float(),  # a language model's logits are large, and most of them stand at prompts
            labels[counted],
            weight=self.weights(logits),
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        return summed / count
