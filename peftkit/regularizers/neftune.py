"""NEFTune: noise on the embedded input."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.regularizers import AtWork, Regularizer, regularizers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@regularizers.register("neftune")
class Neftune(Regularizer):
    """Uniform noise of magnitude alpha / sqrt(tokens * width) on every embedded input.

    Jain et al. 2023, arXiv:2310.05914, algorithm 1.
    """

    paper: ClassVar[str] = "Jain et al. 2023, arXiv:2310.05914"
    moves_inputs: ClassVar[bool] = True

    alpha: float = Field(5.0, gt=0.0)
    """Size of the noise."""

    def start(self, model: PreTrainedModel) -> AtWork:
        """See `Regularizer.start`."""
        from peftkit.regularizers.embedded_inputs import change_embedded_inputs

        def noisy(embedded: Tensor) -> Tensor:
            import torch

            size = self.alpha / (embedded.shape[-2] * embedded.shape[-1]) ** 0.5
            return embedded + torch.empty_like(embedded).uniform_(-size, size)

        change_embedded_inputs(model, noisy)
        return AtWork()
