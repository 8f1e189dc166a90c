"""Sequence classification: one label, several labels or a number for a text or a pair of texts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from peftkit.errors import DataError
from peftkit.labels import Targets
from peftkit.tasks import ROW, Collator, Encoded, Head, Scored, Task, tasks
from peftkit.tasks.columns import check_columns

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

_LOSSES = {
    "single_label": "cross_entropy",
    "multi_label": "binary_cross_entropy",
    "regression": "mean_squared_error",
}
_TARGETS: dict[str, Targets] = {"single_label": "classes", "multi_label": "flags", "regression": "numbers"}
_METRICS = {
    "single_label": ("accuracy", "f1_macro", "matthews_correlation"),
    "multi_label": ("f1_micro", "f1_macro", "accuracy"),
    "regression": ("pearson", "spearman", "mse"),
}
_HUB_NAMES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


@tasks.register("sequence_classification")
class SequenceClassification(Task):
    """A label for each text, or each pair of texts where the rows have a column `text_pair`."""

    text_columns: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    label_column: ClassVar[str | None] = "label"
    rewritable_columns: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    one_label_per_text: ClassVar[bool] = True

    problem_type: Literal["single_label", "multi_label", "regression"] = "single_label"
    """single_label: exactly one of `labels`; multi_label: any number of them; regression: a real number."""
    labels: tuple[str, ...] | dict[str, str] | None = None
    """Label names in class order, or a mapping from the values in the data to names ({1: World, 2: Sports}), where
    equal names make one class; none: taken from the data, in sorted order. Whole numbers in the data are class indices,
    unless names are themselves written as numbers."""
    label_separator: str = Field(",", min_length=1)
    """Multi-label only: what stands between the labels of one text cell."""

    @field_validator("labels", mode="before")
    @classmethod
    def _keys_as_text(cls, labels: Any) -> Any:
        if not isinstance(labels, Mapping):
            return labels
        written = {_written(key): name for key, name in labels.items()}
        if len(written) < len(labels):
            raise ValueError(f"two keys are the same label: {', '.join(map(repr, labels))}; keep one of them")
        return written

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        if self.labels is None:
            return self
        if self.problem_type == "regression":
            raise ValueError("labels name classes, but problem_type is regression; remove labels")
        if isinstance(self.labels, tuple) and len(set(self.labels)) < len(self.labels):
            twice = next(name for name in self.labels if self.labels.count(name) > 1)
            raise ValueError(f"labels has {twice!r} twice; every class needs its own name")
        needed = self._least_labels()
        if len(self.label_names) < needed:
            raise ValueError(
                f"labels names {len(self.label_names)} class(es), {self.problem_type} needs at least {needed}"
            )
        return self

    def _least_labels(self) -> int:
        return 1 if self.problem_type == "multi_label" else 2

    @property
    def targets(self) -> Targets:
        """Classes, flags or numbers."""
        return _TARGETS[self.problem_type]

    @property
    def default_loss(self) -> str:
        """Cross-entropy, binary cross-entropy per label, or mean squared error."""
        return _LOSSES[self.problem_type]

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Accuracy, macro-F1 and Matthews; F1 and exact match; or Pearson, Spearman and squared error."""
        return _METRICS[self.problem_type]

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names in class order; of a resolved task only. Empty for regression."""
        return tuple(dict.fromkeys(self.labels.values())) if isinstance(self.labels, dict) else self.labels or ()

    def resolved(self, splits: DatasetDict) -> Self:
        """With label names taken from the training rows where the recipe gives none; see `Task.resolved`."""
        check_columns(splits, ("text", "label"))
        if self.problem_type == "regression" or self.labels is not None:
            return self
        split = "train" if "train" in splits else next(iter(splits))
        labels = self._labels_of(splits[split])
        if len(labels) < self._least_labels():
            found = ", ".join(map(repr, labels)) or "none"
            raise DataError(
                f"the column 'label' of split {split!r} holds too few different labels to learn from ({found}); "
                "check data.columns, or name all classes with  task.labels"
            )
        return self.model_copy(update={"labels": labels})

    def _labels_of(self, rows: Dataset) -> tuple[str, ...] | dict[str, str]:
        feature = rows.features["label"]
        names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
        if names and any(map(_is_integer_text, names)):
            # The column holds indices; names like "1" would make them ambiguous.
            return {str(index): name for index, name in enumerate(names)}
        if names:
            return tuple(names)
        found = set(self._present(rows))
        return tuple(sorted(found, key=int) if all(map(_is_integer_text, found)) else sorted(found))

    def _present(self, rows: Dataset) -> Iterator[str]:
        """Every label in the column, as text."""
        nested = hasattr(rows.features["label"], "feature")
        if nested and self.problem_type != "multi_label":
            example: list[Any] = next((value for value in rows["label"] if value), [])
            raise DataError(
                f"the column 'label' holds lists ({example!r}); for several labels per row write "
                "task.problem_type: multi_label"
            )
        for value in rows["label"] if nested else rows.unique("label"):
            if not self._is_missing(value):
                yield from (_written(part) for part in self._parts(value) if part is not None)

    def _is_missing(self, value: Any) -> bool:
        if isinstance(value, str):
            return self.problem_type != "multi_label" and not value.strip()
        return value is None or value != value  # NaN is the one value that differs from itself

    def _parts(self, value: Any) -> list[Any]:
        """The labels in one cell."""
        if self.problem_type != "multi_label":
            return [value]
        if isinstance(value, str):
            return [part.strip() for part in value.split(self.label_separator) if part.strip()]
        return list(value) if isinstance(value, (list, tuple)) else [value]

    def _index(self, value: Any) -> int | None:
        """Class index of one label as the data writes it, or None."""
        text, names = _written(value), self.label_names
        if isinstance(self.labels, dict):
            text = self.labels.get(text, text if isinstance(value, str) else "")
        elif _is_integer(value) and not any(map(_is_integer_text, names)):
            return int(value) if 0 <= value < len(names) else None
        return names.index(text) if text in names else None

    def label_problem(self, value: Any) -> str | None:
        """Why a cell is no legal label; see `Task.label_problem`."""
        if self._is_missing(value):
            return "the label is missing"
        if self.problem_type == "regression":
            return None if _is_finite_number(value) else f"the label {value!r} is no finite number"
        parts = self._parts(value)
        unknown = [part for part in parts if self._index(part) is None]
        if unknown:
            return f"the label {unknown[0]!r} is not among task.labels ({', '.join(self.labels or ())})"
        if len(set(map(_written, parts))) < len(parts):
            return f"the label {value!r} names a class twice; list the labels that apply, not zeros and ones"
        return None

    def class_of(self, value: Any) -> str | None:
        """The label's name; None for regression and multi-label."""
        if self.problem_type != "single_label":
            return None
        index = self._index(value)
        return None if index is None else self.label_names[index]

    def head(self) -> Head:
        """A linear layer over the pooled text: (rows, hidden) -> (rows, labels)."""
        names = self.label_names or ("value",)
        config = {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
            "problem_type": _HUB_NAMES[self.problem_type],
        }
        return Head("AutoModelForSequenceClassification", config, peft_task_type="SEQ_CLS")

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per row: input_ids, attention_mask, ...; `labels` where the rows have labels."""
        paired = "text_pair" in rows.column_names
        labelled = "label" in rows.column_names

        def features(batch: Mapping[str, list[Any]], indices: list[int]) -> dict[str, Any]:
            columns = self.text_columns[: 1 + paired]
            texts = [list(map(_text, batch[column], repeat(column), indices)) for column in columns]
            encoded = dict(tokenizer(*texts, truncation=True, max_length=max_length))
            encoded[ROW] = indices
            if labelled:
                encoded["labels"] = [
                    self._target(value, row) for value, row in zip(batch["label"], indices, strict=True)
                ]
            return encoded

        return rows.map(features, batched=True, with_indices=True, remove_columns=rows.column_names, desc="tokenizing")

    def _target(self, value: Any, row: int) -> int | float | list[float]:
        if problem := self.label_problem(value):
            raise DataError(f"row {row}: {problem}")
        if self.problem_type == "regression":
            return float(value)
        indices = [index for part in self._parts(value) if (index := self._index(part)) is not None]
        if self.problem_type == "single_label":
            return indices[0]
        return [float(index in indices) for index in range(len(self.label_names))]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads each batch to its own longest row."""
        from transformers import DataCollatorWithPadding

        padded: Collator = DataCollatorWithPadding(tokenizer)
        return padded

    def references(self, encoded: Encoded) -> np.ndarray:
        """Class indices, flags or values; see `Task.references`."""
        import numpy as np

        kind = np.int64 if self.problem_type == "single_label" else np.float64
        return np.asarray(encoded.features["labels"], kind)

    def decode(self, outputs: Sequence[Any], encoded: Encoded) -> Scored:
        """Predictions, probabilities and per-row losses of one array (labels,) of logits per row."""
        import numpy as np

        references = self.references(encoded)
        logits = self._logits(outputs)
        if self.problem_type == "regression":
            values = logits[:, 0]
            return Scored(values, references, np.square(values - references))
        probabilities = self._probabilities(logits)
        if self.problem_type == "multi_label":
            losses = np.logaddexp(0, logits) - logits * references
            return Scored((logits > 0).astype(int), references.astype(int), losses.mean(axis=1), probabilities)
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_sums = np.log(np.exp(shifted).sum(axis=1))
        losses = log_sums - shifted[np.arange(len(references)), references]
        return Scored(logits.argmax(axis=1), references, losses, probabilities)

    def _logits(self, outputs: Sequence[Any]) -> np.ndarray:
        """(rows, labels) float64."""
        import numpy as np

        return np.asarray(outputs, np.float64).reshape(len(outputs), max(1, len(self.label_names)))

    def _probabilities(self, logits: np.ndarray) -> np.ndarray:
        import numpy as np

        if self.problem_type == "multi_label":
            sigmoid: np.ndarray = np.exp(-np.logaddexp(0, -logits))
            return sigmoid
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax: np.ndarray = exponents / exponents.sum(axis=1, keepdims=True)
        return softmax

    def rows(self, inputs: Sequence[Any]) -> Dataset:
        """Strings, (text, text_pair) pairs, or mappings with these columns, as rows; see `Task.rows`."""
        from datasets import Dataset

        if isinstance(inputs, (str, Mapping)):
            raise DataError(f"the inputs are {inputs!r}; give a list of inputs, even for one")
        parsed = [self._texts(position, value) for position, value in enumerate(inputs)]
        pairs = {len(texts) for texts in parsed}
        if len(pairs) > 1:
            raise DataError("some inputs are single texts and some are pairs; predict them in separate calls")
        columns = self.text_columns[: max(pairs, default=1)]
        return Dataset.from_dict({name: [texts[i] for texts in parsed] for i, name in enumerate(columns)})

    def _texts(self, position: int, value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            return (value,)
        texts = value
        if isinstance(value, Mapping) and "text" in value:
            texts = [value[column] for column in self.text_columns if column in value]
        if isinstance(texts, (list, tuple)) and len(texts) in (1, 2) and all(isinstance(text, str) for text in texts):
            return tuple(texts)
        raise DataError(
            f"input {position} is {value!r}; "
            "give a string, a pair of strings, or a mapping with 'text' (and 'text_pair')"
        )

    def answers(self, outputs: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """label, probability and all probabilities; labels for multi-label; value for regression."""
        logits = self._logits(outputs)
        if self.problem_type == "regression":
            return [{"value": float(value)} for value in logits[:, 0]]
        names = self.label_names
        answers: list[dict[str, Any]] = []
        for row, probabilities in zip(logits, self._probabilities(logits), strict=True):
            named = {name: float(probability) for name, probability in zip(names, probabilities, strict=True)}
            # Chosen by logits, as in `decode`: rounding can make two probabilities equal.
            if self.problem_type == "multi_label":
                chosen = [name for name, logit in zip(names, row, strict=True) if logit > 0]
                answers.append({"labels": chosen, "probabilities": named})
            else:
                best = names[row.argmax()]
                answers.append({"label": best, "probability": named[best], "probabilities": named})
        return answers

    def describe(self, value: Any) -> str:
        """Label names, or the number."""
        if self.problem_type == "regression":
            return f"{value:.3f}"
        if self.problem_type == "multi_label":
            chosen = [name for name, flag in zip(self.label_names, value, strict=True) if flag]
            return ", ".join(chosen) or "(none)"
        name: str = self.label_names[value]
        return name


def _text(value: Any, column: str, row: int) -> str:
    if value is None:
        raise DataError(f"row {row}: the column {column!r} is empty; give it a text or remove the row")
    return str(value)


def _written(value: Any) -> str:
    """A label as text. 1.0 is written 1: spreadsheets and CSV readers turn integer labels into floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer()


def _is_integer_text(name: str) -> bool:
    return re.fullmatch(r"-?\d+", name) is not None


def _is_finite_number(value: Any) -> bool:
    try:
        return abs(float(value)) < float("inf")
    except (TypeError, ValueError):
        return False
