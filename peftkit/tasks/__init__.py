"""Tasks: what is learnt. A task names the head, turns rows into features and model outputs into answers.

Training, evaluation and `Predictor` use the same `encode` and `decode`, so what is measured is what is served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias

from peftkit.labels import IGNORED, Targets
from peftkit.registry import Component, Registry
from peftkit.results import PART_SEPARATOR

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


ROW = "row"
"""Feature column with the 0-based index of the row a feature was made of."""
BASE = "base"
"""Feature column with what the untuned model makes of a row; see `Task.needs_base`."""
DRAW = "draw"
"""Entry of training features with the seed of what is drawn for them, another in each epoch; see `Task.draws`."""


@dataclass(frozen=True)
class Head:
    """How to load a base model for a task.

    Args:
        auto_class: name of the transformers auto class, e.g. AutoModelForSequenceClassification.
        config: values to set in the model's configuration (num_labels, id2label, ...).
        peft_task_type: peft's `TaskType` name, or None.
        is_new: whether the head is no part of the base model, so that it starts random, trains and is saved; where it
            is a part, as in language models, only what the checkpoint lacks is new.
        unused: modules of the architecture that the task does not use; they are dropped.
        modules: further modules that the architecture lacks, by attribute name; see `layers.extended.Modules`.
        generates: whether text is generated with it, which has to end at the tokenizer's end token.
    """

    auto_class: str
    config: Mapping[str, Any] = field(default_factory=dict)
    peft_task_type: str | None = None
    is_new: bool = True
    generates: bool = False
    unused: tuple[str, ...] = ()
    modules: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """A trainer of TRL that computes the loss of a task.

    Args:
        trainer: name of its class, which is imported from `module` only when it is needed.
        arguments: name of the class of its options.
        options: of these, those that belong to the task.
        makes_answers: whether it generates what it learns from, so that it has batches of its own.
        mirrors_base: whether it would make a second adapter to compare with unless it is given a model for that.
    """

    trainer: str
    arguments: str
    options: Mapping[str, Any]
    module: str = "trl"
    makes_answers: bool = False
    mirrors_base: bool = False


@dataclass(frozen=True)
class Encoded:
    """Rows beside the features that a task has made of them.

    Args:
        rows: with the task's columns; without the label columns where an application asks.
        features: one or more per row, with column `ROW`.
        tokenizer: that they were encoded with.
    """

    rows: Dataset
    features: Dataset
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Scored:
    """Predictions beside references, entry by entry.

    Args:
        predictions: (entries,) class indices, values or objects such as strings; (entries, labels) 0/1 for multi-label.
        references: beside `predictions`; where several are right, each is a list of them.
        losses: (entries,) loss of each, for finding the worst.
        probabilities: (entries, labels), or None where the task has none.
        likelihood: (entries, 3) float64, or None where the task has none: summed negative log-likelihood in nats of the
            tokens to be predicted, how many there are, and how many are the model's first choice.
        rows: (entries,) row of each; None: they are the rows, in their order.
        margins: (entries, 2) float64, or None where the task has none: by how much the better answer is rewarded above
            the worse, and by how much its lead in log-likelihood has grown over the base model's.
        rewards: (entries,) float64 of generated answers, or None where the task has none.
    """

    predictions: np.ndarray
    references: np.ndarray
    losses: np.ndarray
    probabilities: np.ndarray | None = None
    likelihood: np.ndarray | None = None
    rows: np.ndarray | None = None
    margins: np.ndarray | None = None
    rewards: np.ndarray | None = None


@dataclass(frozen=True)
class TokenScores:
    """What tells how likely labels are, in place of a language model's output with all its logits.

    Args:
        labels: (rows, length), -100 where there is none.
        losses: (tokens,) -log p of the labels that are there, row by row.
        right: (tokens,) whether they are the model's first choice.
    """

    labels: Tensor
    losses: Tensor
    right: Tensor


class Criterion(Protocol):
    """A loss, as a task uses it."""

    def compute(self, logits: Tensor, labels: Tensor, num_items: int | Tensor | None) -> Tensor:
        """See `losses.Loss.compute`."""


Collator: TypeAlias = Callable[[list[dict[str, Any]]], Mapping[str, Any]]


class Task(Component):
    """What is learnt: head, encoding, loss, metrics and decoding."""

    text_columns: ClassVar[tuple[str, ...]]
    """Columns that are read by the model; those after the first are optional."""
    context_columns: ClassVar[tuple[str, ...]] = ()
    """Columns that are read beside `text_columns` where they are there, and may be empty: rows that differ in them are
    not the same."""
    label_column: ClassVar[str | None] = None
    rewritable_columns: ClassVar[tuple[str, ...]] = ()
    """Columns whose texts may be put in other words without a change of the label; empty: the labels depend on the
    places of words, or on each word."""
    one_label_per_text: ClassVar[bool] = False
    """Whether a row is one text, or pair of texts, with one label, so that rows can be mixed with their labels."""
    generates: ClassVar[bool] = False
    """Whether answers are generated token by token, so that they take much longer than the loss."""
    reads_likelihoods: ClassVar[bool] = False
    """Whether `read` takes `TokenScores` in place of a model's output."""
    streams: ClassVar[bool] = False
    """Whether any few rows can be encoded without the others, so that rows may come from a stream of texts."""
    cut_columns: ClassVar[tuple[str, ...]] = ("input_ids",)
    """Feature columns of which the longest is as long as the row: where it would be longer than `max_length`, encoding
    cuts it to that. Empty: encoding cuts nothing off."""
    draws: ClassVar[bool] = False
    """Whether the collator draws at random: by the seed under `DRAW`, or without one always the same for a feature."""

    @property
    def targets(self) -> Targets:
        """Kind of what the loss compares logits with; see `losses.Loss.targets`."""
        return "classes"

    @property
    def default_loss(self) -> str:
        """Name of the loss this task trains with unless the recipe names one."""
        return "cross_entropy"

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Names of the metrics, the first of which selects the checkpoint."""
        raise NotImplementedError

    @property
    def vocabulary_columns(self) -> tuple[str, ...]:
        """Columns with the words that a tokenizer from scratch has to know."""
        return self.text_columns

    @property
    def engine(self) -> Engine | None:
        """The trainer that computes the loss; None: the task does itself, in `loss`."""
        return None

    @property
    def needs_base(self) -> bool:
        """Whether what the untuned model makes of every row is needed, and kept in the features' column `BASE`."""
        return False

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Give the base model's tokenizer, in place, what belongs to the task and is saved with the run."""

    def training_problem(self, *, batch_size: int, accumulation_steps: int, batching: str) -> tuple[str, str] | None:
        """Key of `training` that does not fit this task, and why, or None. Asked again when it is resolved."""
        return None

    @property
    def draws_per_row(self) -> int:
        """How often each row is trained on in an epoch."""
        return 1

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

    def suited(self, config: PretrainedConfig) -> Self:
        """This task with everything filled in that depends on the base model's configuration.

        Raises:
            CapabilityError: the base model is of a kind that cannot do it.
        """
        return self

    def label_problem(self, value: Any) -> str | None:
        """Why a cell of the label column is not a legal label, or None."""
        return None

    def row_problems(self, rows: Dataset) -> dict[int, str]:
        """What is wrong between the cells of rows whose single cells are legal, by row."""
        return {}

    def class_of(self, value: Any) -> str | None:
        """Name of the class a label belongs to, or None where classes make no sense."""
        return None

    def head(self) -> Head:
        """The head that a resolved task needs."""
        raise NotImplementedError

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Features of `rows`, one or more per row, with column `ROW`; labels only where the rows carry them."""
        raise NotImplementedError

    def unread(self, encoded: Encoded, max_length: int) -> dict[int, str]:
        """What the model reads only in part, or cannot learn, though `cut_columns` do not tell it, by row."""
        return {}

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Function from a list of features to a padded batch of tensors; keeps `ROW` and `labels` where there are."""
        raise NotImplementedError

    def evaluation_collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """What `collator` is while training, for evaluation; another where training batches are drawn at random."""
        return self.collator(tokenizer)

    def forward(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> Any:
        """The model's output for one collated batch, which may hold labels; no loss is computed."""
        return model(**{name: value for name, value in batch.items() if name not in ("labels", ROW)})

    def logits(self, output: Any) -> Tensor:
        """What of a model's output the labels are compared with: (rows, ..., classes)."""
        logits: Tensor = output["logits"] if isinstance(output, Mapping) else output[0]
        return logits

    def aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (..., classes) and the labels (...) that each of them should predict."""
        return logits, labels

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """How many label values a batch holds: what the summed loss of an optimizer step is divided by.

        A loss of several parts has a divisor for each, that of the labels first.
        """
        items: Tensor = (batch["labels"] != IGNORED).sum()
        return items

    def loss(self, output: Any, batch: Mapping[str, Any], *, criterion: Criterion, items: Tensor) -> Tensor:
        """Scalar loss of one micro-batch.

        Args:
            output: of `forward`.
            items: of the whole optimizer step, see `items`; dividing by it makes k micro-batches equal one batch.
        """
        logits, labels = self.aligned(self.logits(output), batch["labels"])
        return criterion.compute(logits, labels, items)

    def base_values(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> list[list[float]]:
        """What is kept of the untuned model in `BASE`, for each feature of the batch; see `needs_base`."""
        raise NotImplementedError

    def engine_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A collated batch as the task's `engine` takes it."""
        raise NotImplementedError

    def read(
        self, model: PreTrainedModel, batch: Mapping[str, Any], output: Any, *, generate: bool = True
    ) -> list[Any]:
        """What decoding needs of a model's output: one entry per feature of the batch, on the CPU.

        Args:
            output: of `forward` for this batch.
            generate: whether a task that generates should do so; without, only the likelihood is read.
        """
        return list(self.logits(output).float().cpu().numpy())

    def references(self, encoded: Encoded) -> np.ndarray:
        """What predictions are compared with; see `Scored.references`."""
        raise NotImplementedError

    def decode(self, outputs: Sequence[Any], encoded: Encoded) -> Scored:
        """What was read of every feature, as predictions beside references."""
        raise NotImplementedError

    def rows(self, inputs: Sequence[Any]) -> Dataset:
        """Inputs of an application (a string, a pair, a mapping of columns) as rows without labels.

        Raises:
            DataError: an input of another shape, with its position.
        """
        raise NotImplementedError

    def answers(self, outputs: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """What an application gets for each row, from what was read of every feature."""
        raise NotImplementedError

    def describe(self, value: Any) -> str:
        """A prediction or reference in words, for reports."""
        return str(value)

    def shown(self, row: Mapping[str, Any]) -> str:
        """A row in words, for reports."""
        return PART_SEPARATOR.join(str(row[column]) for column in self.text_columns if column in row)

    def input_of(self, shown: str) -> Any:
        """An input as an application would give it, made of what `shown` says of a row, which may be cut short."""
        return dict(zip(self.text_columns, shown.split(PART_SEPARATOR), strict=False))


tasks: Registry[Task] = Registry("peftkit.tasks", "task")
