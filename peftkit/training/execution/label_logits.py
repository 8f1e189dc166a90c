"""The logits of language models are computed where labels are, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from peftkit.kernels.label_loss import HeadInput, label_loss, label_scores
from peftkit.labels import IGNORED
from peftkit.losses.cross_entropy import CrossEntropy
from peftkit.tasks import Task, TokenScores
from peftkit.training.execution.part import Part
from peftkit.training.regularization import Regularization
from peftkit.training.setup import Setup


class LabelLogits(Part):
    """See `peftkit.kernels.label_loss`."""

    name: ClassVar[str] = "label_loss"

    def __init__(self, setup: Setup, regularization: Regularization) -> None:
        self.setup = setup
        self.problem = _problem(setup, regularization)

    def loss(self, model: Any, batch: Mapping[str, Any], items: Tensor) -> Tensor | None:
        """The task's loss of a training batch without logits of tokens that have no label; None if it cannot be so."""
        read = self._labelled(model, batch)
        if read is None:
            return None
        states, labels, head = read
        there, criterion = labels != IGNORED, self.setup.criterion
        is_plain = isinstance(criterion, CrossEntropy) and not (criterion.label_smoothing or criterion.class_weights)
        return label_loss(
            states[there],
            labels[there],
            head,
            lambda logits, wanted: criterion.compute(logits, wanted, items),
            divisor=items if is_plain else None,
        )

    def scored(self, model: Any, batch: Mapping[str, Any], items: Tensor) -> tuple[Tensor, TokenScores] | None:
        """`loss` of a batch that is not trained on, with what the task reads of it; None if it cannot be so."""
        read = self._labelled(model, batch) if self.setup.recipe.task.reads_likelihoods else None
        if read is None:
            return None
        states, labels, head = read
        there, criterion = labels != IGNORED, self.setup.criterion
        loss, *scores = label_scores(
            states[there], labels[there], head, lambda logits, wanted: criterion.compute(logits, wanted, items)
        )
        return loss, TokenScores(labels, *scores)

    def _labelled(self, model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Any] | None:
        """States (rows, length, width) that the head is to read, their labels (rows, length), and the head."""
        if self.problem is not None or "labels" not in batch:
            return None
        task = self.setup.recipe.task
        head = HeadInput(self.setup.model.get_output_embeddings())
        try:
            output = task.forward(model, batch)
        finally:
            head.remove()
        if head.states is None or not head.explains(task.logits(output)):
            self.problem = "the model changes what its head gives"
            return None
        labels = batch["labels"]
        states, labels = task.aligned(head.states[:, -labels.shape[1] :], labels)  # virtual tokens stand in front
        return states, labels, head.head


def _problem(setup: Setup, regularization: Regularization) -> str | None:
    recipe = setup.recipe
    if recipe.task.head().auto_class not in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
        return "the model does not predict tokens one by one"
    if recipe.task.engine is not None or type(recipe.task).loss is not Task.loss:
        return f"task {recipe.task.name!r} has a loss of its own"
    if recipe.distillation is not None:
        return "distillation reads all logits"
    if any(part.compares for part in regularization.parts) or any(part.mixes_rows for part in recipe.regularizers):
        return "regularizers read all logits"
    if setup.environment.precision == "fp16":
        return "fp16 scales gradients after the loss"
    return None
