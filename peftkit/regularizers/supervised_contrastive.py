"""Supervised contrastive learning: texts of one class lie together, apart from those of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.errors import CapabilityError
from peftkit.labels import Targets
from peftkit.regularizers import AtWork, Pass, Regularizer, regularizers

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear
    from transformers import PreTrainedModel


@regularizers.register("supervised_contrastive")
class SupervisedContrastive(Regularizer):
    """Draws the vectors that the head reads together within a class, and apart between classes.

    Gunel et al. 2021, arXiv:2011.01403, equations 1 and 3; Khosla et al. 2020, arXiv:2004.11362: the loss becomes
    (1 - weight) * loss + weight * contrast. Rows are compared within the micro-batch, so that small ones compare less;
    a row alone in its class has no contrast.
    """

    paper: ClassVar[str] = "Gunel et al. 2021, arXiv:2011.01403"
    targets: ClassVar[frozenset[Targets]] = frozenset({"classes"})
    needs_label_per_text: ClassVar[bool] = True

    weight: float = Field(0.5, gt=0.0, lt=1.0)
    """Share of the contrast in the loss; the paper's lambda, which is best at 0.9 for few rows."""
    temperature: float = Field(0.3, gt=0.0)
    """Cosines are divided by it before the softmax."""

    def problem(self, model: PreTrainedModel) -> str | None:
        """See `Regularizer.problem`."""
        if _last_linear(model) is None:
            return (
                f"regularizer {self.name!r} needs a head that ends in a linear layer of one output per class, and "
                f"{type(model).__name__} has none; remove it"
            )
        return None

    def start(self, model: PreTrainedModel) -> AtWork:
        """See `Regularizer.start`."""
        return _Contrast(model, self)


class _Contrast(AtWork):
    compares = True

    def __init__(self, model: PreTrainedModel, options: SupervisedContrastive) -> None:
        self.options = options
        self.read: Tensor | None = None
        """(rows, features) that the head has read in the last training pass."""
        self.classes: Tensor | None = None
        """(rows,) of that pass."""
        last = _last_linear(model)
        assert last is not None, "problem() refuses models without"
        last.register_forward_pre_hook(self._keep)

    def _keep(self, head: Any, args: tuple[Any, ...]) -> None:
        if not head.training:
            return
        if args[0].ndim != 2:
            raise CapabilityError(
                f"regularizer {self.options.name!r} compares one vector per text, and the head of this base reads one "
                "per token; remove it, or choose an encoder such as BERT"
            )
        self.read = args[0]

    def labels(self, labels: Tensor) -> Sequence[tuple[float, Tensor]]:
        """See `AtWork.labels`."""
        self.classes = labels
        return ((1.0, labels),)

    def addition(self, first: Pass, again: Callable[[], Pass], items: int | Tensor) -> Tensor:
        """See `AtWork.addition`."""
        assert self.read is not None, "a pass has been made"
        assert self.classes is not None, "a pass has been made"
        contrast = contrast_of(self.read, self.classes, self.options.temperature) / items
        return self.options.weight * (contrast - first.loss)


def contrast_of(vectors: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """Sum over rows of the mean, over the others of its class, of minus their log-share among all others.

    Args:
        vectors: (rows, features), of any length.
        classes: (rows,).
    """
    import torch
    from torch.nn.functional import normalize

    unit = normalize(vectors.float(), dim=-1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    similar = (unit @ unit.T / temperature).masked_fill(itself, float("-inf"))
    shares = similar.log_softmax(-1)
    mates = (classes[:, None] == classes[None]) & ~itself
    lost = -shares.masked_fill(~mates, 0.0).sum(-1) / mates.sum(-1).clamp(min=1)
    return lost[mates.any(-1)].sum()


def _last_linear(model: Any) -> Linear | None:
    """The layer that makes the logits of classes: the last that trains, or will, with one output per class."""
    from torch.nn import Linear

    outputs = model.config.num_labels
    found = [module for module in model.modules() if isinstance(module, Linear) and module.out_features == outputs]
    training = [module for module in found if module.weight.requires_grad]
    return next(reversed(training or found), None)
