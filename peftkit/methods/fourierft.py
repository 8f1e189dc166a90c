"""FourierFT: the update is learnt as a few Fourier coefficients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.methods import TuningContext, methods
from peftkit.methods.peft_adapter import LinearAdapter
from peftkit.methods.widths import widths

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@methods.register("fourierft")
class FourierFT(LinearAdapter):
    """A few trained Fourier coefficients at fixed random frequencies, transformed back, are the update."""

    config_class: ClassVar[str] = "FourierFTConfig"
    paper: ClassVar[str] = "Gao et al. 2024, arXiv:2405.03003"
    use_when: ClassVar[str] = "adapters as small as can be; slow on large layers"
    mergeable: ClassVar[bool] = True
    base_bits: ClassVar[frozenset[int]] = frozenset({16, 32})
    default_learning_rate: ClassVar[float] = 5e-2

    frequencies: int = Field(1000, ge=1)
    """Coefficients per layer; at most as many as the smallest layer has weights."""
    scaling: float = Field(150.0, gt=0)
    """Factor of the update."""
    seed: int = Field(0, ge=0)
    """Draws the frequencies."""

    def options(self, model: PreTrainedModel, context: TuningContext) -> dict[str, Any]:
        """See `LinearAdapter.options`."""
        fewest = min((inputs * outputs for inputs, outputs in widths(model, context)), default=self.frequencies)
        frequencies = min(self.frequencies, fewest)
        return {"n_frequency": frequencies, "scaling": self.scaling, "random_loc_seed": self.seed}
