"""R-Drop: two passes whose dropout differs have to agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from peftkit.labels import Targets
from peftkit.regularizers import AtWork, Pass, Regularizer, regularizers

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
    compares = True

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def addition(self, first: Pass, again: Callable[[], Pass], items: int | Tensor) -> Tensor:
        """What makes the loss the mean of both passes plus alpha / 2 times the mean of KL(p1 || p2) and KL(p2 || p1).

        See `AtWork.addition`.
        """
        from peftkit.regularizers.divergence import symmetric_divergence

        second = again()
        return (second.loss - first.loss) / 2 + self.alpha / 4 * symmetric_divergence(
            first.logits, second.logits
        ) / items
