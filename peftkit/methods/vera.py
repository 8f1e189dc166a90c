"""VeRA: random matrices shared by all layers, of which only scaling vectors train."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from peftkit.methods import methods
from peftkit.methods.peft_adapter import LinearAdapter, Sizes


@methods.register("vera")
class Vera(LinearAdapter):
    """Random matrices shared by all layers of one shape, scaled by trained vectors: y = W x + b * (B (d * (A x)))."""

    config_class: ClassVar[str] = "VeraConfig"
    paper: ClassVar[str] = "Kopiczko, Blankevoort & Asano 2023, arXiv:2310.11454"
    use_when: ClassVar[str] = "many adapters at once: a tenth of lora's trained parameters"
    mergeable: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 1e-2

    rank: int = Field(256, ge=1)
    """Rows of A and columns of B."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the inputs that is dropped while training."""
    seed: int = Field(0, ge=0)
    """Draws A and B, which are saved with the adapter too."""

    def options(self, sizes: Sizes) -> dict[str, Any]:
        """See `LinearAdapter.options`."""
        return {"r": self.rank, "vera_dropout": self.dropout, "projection_prng_key": self.seed}
