"""What a task computes itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NoReturn

from peftkit.labels import Targets
from peftkit.losses import Loss, losses

if TYPE_CHECKING:
    from torch import Tensor


@losses.register("own")
class Own(Loss):
    """The loss that belongs to the task, where no other makes sense: of a CRF, or of a preference."""

    targets: ClassVar[frozenset[Targets]] = frozenset({"own", "rewards"})

    def compute(self, logits: Tensor, labels: Tensor, num_items: int | Tensor | None) -> NoReturn:
        """Not called: the task computes it.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError
