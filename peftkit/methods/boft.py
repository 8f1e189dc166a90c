"""BOFT: orthogonal updates as products of butterfly factors."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.errors import CapabilityError
from peftkit.methods import TuningContext, methods
from peftkit.methods.peft_adapter import LinearAdapter, Sizes
from peftkit.methods.widths import fitting_block

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NO_FACTORS = (
    "method.factors {factors} needs a CUDA extension that peft compiles when it is first used, with a CUDA toolkit and "
    "ninja, and here it has none: it would quietly compute one factor; use factors: 1"
)


@methods.register("boft")
class BOFT(LinearAdapter):
    """Trained orthogonal matrices, each a product of sparse butterfly factors, turn the weights."""

    config_class: ClassVar[str] = "BOFTConfig"
    paper: ClassVar[str] = "Liu et al. 2023, arXiv:2311.06243"
    use_when: ClassVar[str] = "as oft, with fewer parameters; slow"
    mergeable: ClassVar[bool] = True
    adapts_conv1d: ClassVar[bool] = False
    default_learning_rate: ClassVar[float] = 1e-3

    block_size: int | None = Field(None, ge=2)
    """Width of a factor's blocks; none: the largest up to 8 that divides the inputs of all layers."""
    factors: int = Field(1, ge=1)
    """Butterfly factors; more than one needs a CUDA toolkit."""

    def options(self, sizes: Sizes) -> dict[str, Any]:
        """See `LinearAdapter.options`."""
        return {
            "boft_block_size": fitting_block(self.block_size, sizes, at_most=8),
            "boft_n_butterfly_factor": self.factors,
        }

    def problem(self, model: PreTrainedModel, context: TuningContext) -> str | None:
        """See `LinearAdapter.problem`; also: more factors than this machine computes."""
        import torch

        if self.factors > 1 and not torch.cuda.is_available():
            return _NO_FACTORS.format(factors=self.factors)
        return super().problem(model, context)

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        with warnings.catch_warnings():
            # said of every machine without a CUDA toolkit, and of no matter for one factor
            warnings.filterwarnings("ignore", "Failed to load the CUDA extension", UserWarning)
            warnings.filterwarnings("ignore", "Setting boft_n_butterfly_factor to 1", UserWarning)
            tuned = super().apply(model, context)
        built = {len(weight) for name, weight in tuned.named_parameters() if ".boft_R." in name}
        if built != {self.factors}:
            raise CapabilityError(_NO_FACTORS.format(factors=self.factors))
        return tuned
