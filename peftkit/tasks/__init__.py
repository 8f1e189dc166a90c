"""Tasks: what is learnt. A task names the head, turns rows into features and model outputs into answers.

Training, evaluation and `Predictor` use the same `encode` and `decode`, so what is measured is what is served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftkit.registry import Component, Registry

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROW = "row"
"""Feature column with the 0-based index of the row a feature was made of."""


@dataclass(frozen=True)
class Head:
    """How to load a base model for a task.

    Args:
        auto_class: name of the transformers auto class, e.g. AutoModelForSequenceClassification.
        config: values to set in the model's configuration (num_labels, id2label, ...).
        peft_task_type: peft's `TaskType` name, or None.
        is_new: whether the head is no part of the base model, so that it starts random, trains and is saved.
    """

    auto_class: str
    config: Mapping[str, Any] = field(default_factory=dict)
    peft_task_type: str | None = None
    is_new: bool = True


@dataclass(frozen=True)
class Scored:
    """Predictions beside references, row by row.

    Args:
        predictions: (rows,) class indices or values; (rows, labels) 0/1 for multi-label.
        references: shaped like `predictions`.
        losses: (rows,) loss of each row, for finding the worst.
        probabilities: (rows, labels), or None where the task has none.
    """

    predictions: np.ndarray
    references: np.ndarray
    losses: np.ndarray
    probabilities: np.ndarray | None = None


class Task(Component):
    """What is learnt: head, encoding, loss, metrics and decoding."""

    text_columns: ClassVar[tuple[str, ...]]
    """Columns that are read by the model; those after the first are optional."""
    label_column: ClassVar[str | None] = None

    @property
    def default_loss(self) -> str:
        """Name of the loss this task trains with unless the recipe names one."""
        raise NotImplementedError

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Names of the metrics, the first of which selects the checkpoint."""
        raise NotImplementedError

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, in class order, of a resolved task; empty where there are none."""
        return ()

    def resolved(self, splits: DatasetDict) -> Self:
        """This task with everything filled in that depends on the data, e.g. the names of the labels.

        Raises:
            DataError: columns the task needs are absent.
        """
        raise NotImplementedError

    def label_problem(self, value: Any) -> str | None:
        """Why a cell of the label column is not a legal label, or None."""
        raise NotImplementedError

    def class_of(self, value: Any) -> str | None:
        """Name of the class a label belongs to, or None where classes make no sense."""
        return None

    def head(self) -> Head:
        """The head that a resolved task needs."""
        raise NotImplementedError

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Features of `rows`, one or more per row, with column `ROW`; labels only where the rows carry them."""
        raise NotImplementedError

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Function from a list of features to a padded batch of tensors."""
        raise NotImplementedError

    def decode(self, logits: np.ndarray, references: np.ndarray) -> Scored:
        """Model outputs of encoded rows as predictions and references."""
        raise NotImplementedError

    def rows(self, inputs: Sequence[Any]) -> Dataset:
        """Inputs of an application (a string, a pair, a mapping of columns) as rows without labels.

        Raises:
            DataError: an input of another shape, with its position.
        """
        raise NotImplementedError

    def answers(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """What an application gets for each row of `logits`."""
        raise NotImplementedError

    def describe(self, value: Any) -> str:
        """A prediction or reference in words, for reports."""
        raise NotImplementedError

    def forward(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> Any:
        """Logits of one collated batch, (rows, labels)."""
        return model(**batch).logits


tasks: Registry[Task] = Registry("peftkit.tasks", "task")
