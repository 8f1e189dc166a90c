"""How the steps of a run are computed, where that is left to the engine: the same maths in less time and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from peftkit.kernels.label_loss import HeadInput, label_loss, label_scores
from peftkit.kernels.lora_linear import fuse_lora, unfuse_lora
from peftkit.kernels.recompute import Recomputation, pays_back
from peftkit.labels import IGNORED
from peftkit.layers.blocks import block_lists
from peftkit.padding_free import PaddingFree, has_decoder_beside, padding_free_problem
from peftkit.tasks import Task, TokenScores
from peftkit.training.regularization import Regularization
from peftkit.training.setup import Setup
from peftkit.training.state_store import StateStore
from peftkit.training.trunk import Trunk
from peftkit.training.trunk_check import described, trunk_or_reason


class Execution:
    """What is done to the model of a run to compute its steps faster, until `remove`."""

    def __init__(self, setup: Setup, regularization: Regularization) -> None:
        self.setup = setup
        self.problems = {"padding_free": _padding_problem(setup), "label_loss": _label_problem(setup, regularization)}
        """Why what could be done is not, by its name; None where it is."""
        self.padding_free = PaddingFree(setup.model) if self.problems["padding_free"] is None else None
        self.fused_layers = fuse_lora(setup.model)
        self.problems["recomputation"] = _recomputation_problem(setup)
        blocks = [block for stack in block_lists(setup.model).values() for block in stack]
        self.recomputation = Recomputation(setup.model, blocks) if self.problems["recomputation"] is None else None
        self.trunk: Trunk | str = "tasks that train together share their blocks"
        """What is computed once only; in words, why there is nothing of the kind."""

    def keep_trunk(self) -> None:
        """Compute the blocks below all that trains once only, where that can be."""
        self.trunk = trunk_or_reason(self.setup)

    def flush(self) -> None:
        """Write what is kept for a resumed run."""
        if isinstance(self.trunk, Trunk) and isinstance(self.trunk.store, StateStore):
            self.trunk.store.flush()

    def loss(self, model: Any, batch: Mapping[str, Any], items: Tensor) -> Tensor | None:
        """The task's loss of a training batch without logits of tokens that have no label; None if it cannot be so."""
        read = self._labelled(model, batch)
        if read is None:
            return None
        states, labels, head = read
        there, criterion = labels != IGNORED, self.setup.criterion
        return label_loss(
            states[there], labels[there], head, lambda logits, wanted: criterion.compute(logits, wanted, items)
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
        if self.problems["label_loss"] is not None or "labels" not in batch:
            return None
        task = self.setup.recipe.task
        head = HeadInput(self.setup.model.get_output_embeddings())
        try:
            output = task.forward(model, batch)
        finally:
            head.remove()
        if head.states is None or not head.explains(task.logits(output)):
            self.problems["label_loss"] = "the model changes what its head gives"
            return None
        labels = batch["labels"]
        states, labels = task.aligned(head.states[:, -labels.shape[1] :], labels)  # virtual tokens stand in front
        return states, labels, head.head

    def described(self) -> Mapping[str, str]:
        """What was done, and why what was not done was not, for the report."""
        problems = dict(self.problems)
        if self.padding_free is not None and self.padding_free.padded and not self.padding_free.packed:
            problems["padding_free"] = "the method or task reads more than hidden states of the model"
        found = {name: "on" if problem is None else f"off: {problem}" for name, problem in problems.items()}
        if problems["padding_free"] is None and has_decoder_beside(self.setup.model):
            found["padding_free"] = "on in the encoder; the decoder is given no mask, and keeps its padding"
        return {**found, "fused_lora_layers": str(self.fused_layers), "trunk_cache": described(self.trunk)}

    def remove(self) -> None:
        """Leave the model as plain libraries know it."""
        self.flush()
        if isinstance(self.trunk, Trunk):
            self.trunk.remove()
        if self.padding_free is not None:
            self.padding_free.remove()
        if self.recomputation is not None:
            self.recomputation.remove()
        unfuse_lora(self.setup.model)


def _padding_problem(setup: Setup) -> str | None:
    training = setup.recipe.training
    if not training.padding_free:
        return "training.padding_free is false"
    if training.gradient_checkpointing:
        return "gradient checkpointing computes blocks again when their batch is forgotten"
    mixing = next((part.name for part in setup.recipe.regularizers if part.mixes_rows), None)
    if mixing is not None:
        return f"regularizer {mixing!r} mixes rows, token by token"
    if not setup.recipe.method.per_token:
        return f"method {setup.recipe.method.name!r} may mix the tokens of a batch"
    return padding_free_problem(setup.model)


def _label_problem(setup: Setup, regularization: Regularization) -> str | None:
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


def _recomputation_problem(setup: Setup) -> str | None:
    recipe = setup.recipe
    if recipe.training.gradient_checkpointing:
        return "gradient checkpointing recomputes whole blocks"
    if not recipe.method.allows_gradient_checkpointing:
        return f"method {recipe.method.name!r} does not allow it"
    part = next((part.name for part in recipe.regularizers if not part.allows_gradient_checkpointing), None)
    if part is not None:
        return f"regularizer {part!r} does not allow it"
    if recipe.distillation is not None or recipe.task.engine is not None:
        return "other programs look into the blocks"
    stacks = block_lists(setup.model)
    if len(stacks) > 1:
        return "blocks of encoder-decoders share tensors that are made once for a packed batch"
    if not pays_back(block for stack in stacks.values() for block in stack):
        return "the norms of the model keep little"
    return None
