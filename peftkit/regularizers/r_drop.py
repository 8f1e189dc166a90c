"""R-Drop: two passes whose dropout differs have to agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.labels import Targets
from peftkit.regularizers import AtWork, Regularizer, regularizers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@regularizers.register("r_drop")
class RDrop(Regularizer):
    """Adds the symmetric divergence of two passes over each batch, whose dropout differs, to their mean loss.

    Liang et al. 2021, arXiv:2106.14448, equation 3, divided by two. It needs dropout, in the base or of the method. A
    step takes twice the time.
    """

    paper: ClassVar[str] = "Liang et al. 2021, arXiv:2106.14448"
    targets: ClassVar[frozenset[Targets]] = frozenset({"classes"})

    alpha: float = Field(1.0, gt=0.0)
    """Weight of the divergence, as in the paper."""

    def start(self, model: PreTrainedModel) -> AtWork:
        """See `Regularizer.start`."""
        return _Agreement(self.alpha)


class _Agreement(AtWork):
    two_passes = True

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def disagreement(self, first: Tensor, second: Tensor, num_items: int | Tensor) -> Tensor:
        """alpha / 2 times the mean of KL(p1 || p2) and KL(p2 || p1); see `AtWork.disagreement`."""
        from torch.nn.functional import kl_div

        one, two = first.float().log_softmax(-1), second.float().log_softmax(-1)
        both = kl_div(one, two, reduction="sum", log_target=True) + kl_div(two, one, reduction="sum", log_target=True)
        return self.alpha / 4 * both / num_items
