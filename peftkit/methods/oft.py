"""OFT: the weights are turned by trained block-diagonal rotations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.methods import TuningContext, methods
from peftkit.methods.peft_adapter import LinearAdapter
from peftkit.methods.widths import dividing_block

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    """Width of a rotation; none: the largest up to 32 that divides all widths."""

    def options(self, model: PreTrainedModel, context: TuningContext) -> dict[str, Any]:
        """See `LinearAdapter.options`."""
        return {"oft_block_size": self.block_size or dividing_block(model, context, at_most=32), "r": 0}
