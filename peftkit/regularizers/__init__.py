"""Regularizers: what keeps training from fitting too closely, by a change of the objective or of the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peftkit.labels import Targets
from peftkit.registry import Component, Registry

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Pass:
    """One pass over a micro-batch, in training mode.

    Args:
        loss: the task's, scalar.
        logits: (positions, classes) at positions that have a label.
    """

    loss: Tensor
    logits: Tensor


class AtWork:
    """A regularizer on one model, for one run. It does nothing while the model is in evaluation mode.

    For each micro-batch: `begin`, a pass, `addition`, the backward pass, `after_backward`; for each optimizer step:
    `penalty`, then `after_step`.
    """

    compares = False
    """Whether it has an `addition`."""
    loss_share = 1.0
    """What every pass counts, for one that divides the loss of a micro-batch among several passes."""

    def begin(self, look: Callable[[], Tensor]) -> None:
        """Called before the first pass over a micro-batch.

        Args:
            look: makes a pass of its own and gives its loss, scaled as gradients are; no gradient is computed yet.
        """

    def labels(self, labels: Tensor) -> Sequence[tuple[float, Tensor]]:
        """What a pass is compared with instead of the labels of its micro-batch: each with its share in the loss."""
        return ((1.0, labels),)

    def addition(self, first: Pass, again: Callable[[], Pass], items: int | Tensor) -> Tensor:
        """What is added to the loss of a micro-batch; asked of one that `compares` only.

        Args:
            first: the pass that is under way.
            again: makes another over the same micro-batch, whose dropout differs.
            items: what sums are divided by; see `Loss.compute`.
        """
        raise NotImplementedError

    def penalty(self) -> Tensor | None:
        """What is added to the loss of every optimizer step; None: nothing."""
        return None

    def after_backward(self, again: Callable[[], object]) -> None:
        """Called when a micro-batch has given its gradients; `again` adds those of another pass over it."""

    def after_step(self, step: int, total: int) -> None:
        """Called after every optimizer step.

        Args:
            step: how many there were.
            total: how many the run has.
        """

    def averages(self) -> Mapping[Parameter, Tensor]:
        """Values that are evaluated and saved in place of those that train; empty: none."""
        return {}

    def state(self) -> Mapping[str, Tensor]:
        """What a checkpoint has to keep, so that a resumed run is the same run."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""


class Regularizer(Component):
    """A change of the objective, or of the step."""

    paper: ClassVar[str] = ""
    """Where it comes from: authors, year, arXiv number."""

    # Facts, which a recipe's other parts are held against before anything is loaded.
    targets: ClassVar[frozenset[Targets]] = frozenset({"classes", "flags", "numbers", "pairs", "own"})
    """Kinds of labels it works with; see `Loss.targets`."""
    does: ClassVar[str] = ""
    """What only one regularizer of a recipe can do, in words: 'average the weights'; empty: nothing of the kind."""
    averages_weights: ClassVar[bool] = False
    """Whether it evaluates and saves averages; the method must not drop weights on its way."""
    needs_start_at_base: ClassVar[bool] = False
    """Whether the weights that train have to start where they leave the base as it is."""
    needs_label_per_text: ClassVar[bool] = False
    """Whether it mixes or compares rows by their labels, so that every text has to have one."""
    mixes_rows: ClassVar[bool] = False
    """Whether the model is computed on mixtures of rows, which a teacher would not see, and which need padding."""
    moves_inputs: ClassVar[bool] = False
    """Whether it changes the embedded input while the model trains."""
    allows_gradient_checkpointing: ClassVar[bool] = True

    def problem(self, model: PreTrainedModel) -> str | None:
        """Why it cannot work on `model`, in one sentence with what to do instead; None if it can.

        Args:
            model: the base model with its head; its weights may not be there yet (meta device).
        """
        return None

    def start(self, model: PreTrainedModel) -> AtWork:
        """Set it to work on a model that is about to be trained."""
        raise NotImplementedError


regularizers: Registry[Regularizer] = Registry("peftkit.regularizers", "regularizer")
