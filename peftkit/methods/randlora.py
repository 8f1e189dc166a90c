"""RandLoRA: full-rank updates out of fixed random matrices."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from peftkit.methods import methods
from peftkit.methods.peft_adapter import LinearAdapter, Sizes


@methods.register("randlora")
class RandLora(LinearAdapter):
    """Updates of full rank: sums of fixed random low-rank matrices that trained diagonals scale."""

    config_class: ClassVar[str] = "RandLoraConfig"
    paper: ClassVar[str] = "Albert et al. 2025, arXiv:2502.00987"
    use_when: ClassVar[str] = "lora's rank is the limit; many steps are affordable"
    mergeable: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 1e-3

    rank: int = Field(32, ge=1)
    """Rank of each random matrix; fewer means more of them and more trained parameters."""
    alpha: int | None = Field(None, ge=1)
    """The update is scaled by alpha / rank; none: 20 times the rank."""
    seed: int = Field(0, ge=0)
    """Draws the random matrices, which are saved with the adapter too."""

    def options(self, sizes: Sizes) -> dict[str, Any]:
        """See `LinearAdapter.options`."""
        return {"r": self.rank, "randlora_alpha": self.alpha or 20 * self.rank, "projection_prng_key": self.seed}
