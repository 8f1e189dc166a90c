"""MiSS: one small matrix is shared along each weight."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from peftkit.errors import CapabilityError
from peftkit.methods import methods
from peftkit.methods.peft_adapter import LinearAdapter, Sizes


@methods.register("miss")
class MiSS(LinearAdapter):
    """One small trained matrix, repeated along the inputs of each weight, is the update."""

    config_class: ClassVar[str] = "MissConfig"
    paper: ClassVar[str] = "Kang & Yin 2024, arXiv:2409.15371"
    use_when: ClassVar[str] = "as lora with one matrix instead of two: less memory, quick steps"
    mergeable: ClassVar[bool] = True
    adapts_conv1d: ClassVar[bool] = False
    default_learning_rate: ClassVar[float] = 1e-3

    rank: int = Field(16, ge=1)
    """Rows of the shared matrix."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the inputs that is dropped while training."""

    def options(self, sizes: Sizes) -> dict[str, Any]:
        """See `LinearAdapter.options`."""
        fewest = min(inputs for inputs, _ in sizes.values())
        if self.rank > fewest:
            raise CapabilityError(
                f"method.rank {self.rank} is more than the {fewest} inputs of the narrowest layer that miss is put on; "
                "use a smaller one"
            )
        return {"r": self.rank, "miss_dropout": self.dropout}
