"""BOFT: orthogonal updates as products of butterfly factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.methods import TuningContext, methods
from peftkit.methods.peft_adapter import LinearAdapter
from peftkit.methods.widths import dividing_block

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@methods.register("boft")
class BOFT(LinearAdapter):
    """Trained orthogonal matrices, each a product of sparse butterfly factors, turn the weights."""

    config_class: ClassVar[str] = "BOFTConfig"
    paper: ClassVar[str] = "Liu et al. 2023, arXiv:2311.06243"
    use_when: ClassVar[str] = "as oft, with fewer parameters; slow"
    mergeable: ClassVar[bool] = True
    adapts_conv1d: ClassVar[bool] = False
    base_bits: ClassVar[frozenset[int]] = frozenset({16, 32})
    default_learning_rate: ClassVar[float] = 1e-3

    block_size: int | None = Field(None, ge=2)
    """Width of a factor's blocks; none: the largest up to 8 that divides all widths."""
    factors: int = Field(1, ge=1)
    """Butterfly factors."""

    def options(self, model: PreTrainedModel, context: TuningContext) -> dict[str, Any]:
        """See `LinearAdapter.options`."""
        return {
            "boft_block_size": self.block_size or dividing_block(model, context, at_most=8),
            "boft_n_butterfly_factor": self.factors,
        }
