"""Self-adjusting Dice loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from peftkit.losses import losses
from peftkit.losses.overlap import Overlap

if TYPE_CHECKING:
    from torch import Tensor


@losses.register("dice")
class Dice(Overlap):
    """1 - (2 q y + s) / (q + y + s) with q = (1 - p)^d p: for classes of very different frequency.

    Li et al. 2020, arXiv:1911.02855, section 3. p is the softmax over classes or, for several labels per row, each
    label's sigmoid; y is 1 where the label applies.
    """

    decay: float = Field(1.0, ge=0.0)
    """d: how much less positions count that are easy by now; 0: plain Dice."""

    def overlap(self, p: Tensor, y: Tensor) -> Tensor:
        """See `Overlap.overlap`."""
        q = (1 - p) ** self.decay * p
        return (2 * q * y + self.smoothing) / (q + y + self.smoothing)
