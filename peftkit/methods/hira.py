"""HiRA: a low-rank matrix multiplies the weights."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from peftkit.methods import methods
from peftkit.methods.peft_adapter import LinearAdapter, Sizes


@methods.register("hira")
class HiRA(LinearAdapter):
    """The update is the element-wise product of the weight and a low-rank matrix, so it has a high rank."""

    config_class: ClassVar[str] = "HiraConfig"
    paper: ClassVar[str] = "Huang et al. 2025 (HiRA, ICLR 2025)"
    use_when: ClassVar[str] = "as lora, where its low rank falls short"
    mergeable: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 5e-3

    rank: int = Field(32, ge=1)
    """Rank of the matrix that multiplies the weight."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the inputs that is dropped while training."""

    def options(self, sizes: Sizes) -> dict[str, Any]:
        """See `LinearAdapter.options`."""
        return {"r": self.rank, "hira_dropout": self.dropout}
