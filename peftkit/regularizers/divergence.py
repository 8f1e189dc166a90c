"""How far apart two predictions are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def symmetric_divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(p1 || p2) + KL(p2 || p1), summed over positions, of logits (positions, classes)."""
    from torch.nn.functional import kl_div

    one, two = first.float().log_softmax(-1), second.float().log_softmax(-1)
    return kl_div(one, two, reduction="sum", log_target=True) + kl_div(two, one, reduction="sum", log_target=True)
