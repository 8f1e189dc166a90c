"""LoKr: the update is a Kronecker product."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from peftkit.methods import methods
from peftkit.methods.peft_adapter import LinearAdapter, Sizes


@methods.register("lokr")
class LoKr(LinearAdapter):
    """The update is the Kronecker product of a small matrix and a low-rank one."""

    config_class: ClassVar[str] = "LoKrConfig"
    paper: ClassVar[str] = "Yeh et al. 2023, arXiv:2309.14859"
    use_when: ClassVar[str] = "very small adapters of full rank"
    mergeable: ClassVar[bool] = True
    adapts_conv1d: ClassVar[bool] = False
    base_bits: ClassVar[frozenset[int]] = frozenset({8, 16, 32})
    default_learning_rate: ClassVar[float] = 2e-3

    rank: int = Field(8, ge=1)
    """Rank of the second factor."""
    alpha: float = Field(16.0, gt=0)
    """The update is scaled by alpha / rank."""
    factor: int = Field(-1, ge=-1)
    """Size of the first factor; -1: the divisor nearest to the square root of the width."""

    def options(self, sizes: Sizes) -> dict[str, Any]:
        """See `LinearAdapter.options`."""
        return {"r": self.rank, "alpha": self.alpha, "decompose_factor": self.factor}
