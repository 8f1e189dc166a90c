"""OFT: the weights are turned by trained block-diagonal rotations."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from peftkit.methods import methods
from peftkit.methods.peft_adapter import LinearAdapter, Sizes
from peftkit.methods.widths import fitting_block


@methods.register("oft")
class OFT(LinearAdapter):
    """Trained block-diagonal rotations turn the inputs of each layer, which keeps angles between neurons."""

    config_class: ClassVar[str] = "OFTConfig"
    paper: ClassVar[str] = "Qiu et al. 2023, arXiv:2306.07280; Qiu et al. 2025, arXiv:2506.19847"
    use_when: ClassVar[str] = "the base must keep what it knows: generation of images and text"
    mergeable: ClassVar[bool] = True
    adapts_conv1d: ClassVar[bool] = False
    default_learning_rate: ClassVar[float] = 1e-3

    block_size: int | None = Field(None, ge=2)
    """Width of a rotation; none: the largest up to 32 that divides the inputs of all layers."""

    def options(self, sizes: Sizes) -> dict[str, Any]:
        """See `LinearAdapter.options`."""
        return {"oft_block_size": fitting_block(self.block_size, sizes, at_most=32), "r": 0}
