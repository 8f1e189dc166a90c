"""FourierFT: the update is learnt as a few Fourier coefficients."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from peftkit.errors import CapabilityError
from peftkit.methods import methods
from peftkit.methods.peft_adapter import LinearAdapter, Sizes

_FREQUENCIES = 1000


@methods.register("fourierft")
class FourierFT(LinearAdapter):
    """A few trained Fourier coefficients at fixed random frequencies, transformed back, are the update.

    The coefficients start as normal noise, so that the outputs are not quite the base's at the first step.
    """

    config_class: ClassVar[str] = "FourierFTConfig"
    paper: ClassVar[str] = "Gao et al. 2024, arXiv:2405.03003"
    use_when: ClassVar[str] = "adapters as small as can be; slow on large layers"
    mergeable: ClassVar[bool] = True
    default_learning_rate: ClassVar[float] = 5e-2

    frequencies: int | None = Field(None, ge=1)
    """Coefficients per layer; none: 1000, or as many as the smallest layer has weights."""
    scaling: float = Field(150.0, gt=0)
    """Factor of the update."""
    seed: int = Field(0, ge=0)
    """Draws the frequencies."""

    def options(self, sizes: Sizes) -> dict[str, Any]:
        """See `LinearAdapter.options`."""
        smallest = min(sizes, key=lambda name: sizes[name][0] * sizes[name][1])
        most = sizes[smallest][0] * sizes[smallest][1]
        if self.frequencies is not None and self.frequencies > most:
            raise CapabilityError(
                f"method.frequencies {self.frequencies} is more than the {most} weights of {smallest}; use fewer"
            )
        frequencies = self.frequencies or min(_FREQUENCIES, most)
        return {"n_frequency": frequencies, "scaling": self.scaling, "random_loc_seed": self.seed}
