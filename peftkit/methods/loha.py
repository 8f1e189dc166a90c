"""LoHa: the update is the element-wise product of two low-rank matrices."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from peftkit.methods import methods
from peftkit.methods.peft_adapter import LinearAdapter, Sizes


@methods.register("loha")
class LoHa(LinearAdapter):
    """The update is the element-wise product of two low-rank matrices, so its rank can reach rank squared."""

    config_class: ClassVar[str] = "LoHaConfig"
    paper: ClassVar[str] = "Hyeon-Woo, Ye-Bin & Oh 2021, arXiv:2108.06098"
    use_when: ClassVar[str] = "a higher rank than lora's is wanted for the same parameters"
    mergeable: ClassVar[bool] = True
    adapts_conv1d: ClassVar[bool] = False
    base_bits: ClassVar[frozenset[int]] = frozenset({8, 16, 32})
    default_learning_rate: ClassVar[float] = 1e-3

    rank: int = Field(8, ge=1)
    """Rank of each of the two matrices."""
    alpha: float = Field(16.0, gt=0)
    """The update is scaled by alpha / rank."""

    def options(self, sizes: Sizes) -> dict[str, Any]:
        """See `LinearAdapter.options`."""
        return {"r": self.rank, "alpha": self.alpha}
