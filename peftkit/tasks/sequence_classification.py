"""Sequence classification: one label, several labels or a number for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from peftkit.errors import DataError
from peftkit.tasks import ROW, Head, Scored, Task, tasks

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedTokenizerBase

_LOSSES = {
    "single_label": "cross_entropy",
    "multi_label": "binary_cross_entropy",
    "regression": "mean_squared_error",
}
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

    problem_type: Literal["single_label", "multi_label", "regression"] = "single_label"
    """single_label: exactly one of `labels`; multi_label: any number of them; regression: a real number."""
    labels: tuple[str, ...] | dict[str | int, str] | None = None
    """Label names in class order, or a mapping from the values in the data to names ({1: World, 2: Sports}); none: taken
    from the data, in sorted order."""
    label_separator: str = Field(",", min_length=1)
    """Multi-label only: what stands between the labels of one text cell."""

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
        return tuple(self.labels.values()) if isinstance(self.labels, dict) else self.labels or ()

    def resolved(self, splits: DatasetDict) -> Self:
        """With label names taken from the training rows where the recipe gives none; see `Task.resolved`."""
        for split, rows in splits.items():
            for column in ("text", "label"):
                if column not in rows.column_names:
                    listed = ", ".join(name for name in rows.column_names if not name.startswith("__"))
                    raise DataError(
                        f"split {split!r} has no column {column!r} (it has: {listed}); "
                        f"map it in the recipe with  data.columns: {{{column}: ...}}"
                    )
        if self.problem_type == "regression" or self.labels is not None:
            return self
        rows = splits["train"] if "train" in splits else next(iter(splits.values()))
        return self.model_copy(update={"labels": self._labels_of(rows)})

    def _labels_of(self, rows: Dataset) -> tuple[str, ...] | dict[str | int, str]:
        feature = rows.features["label"]
        names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
        if names:
            return tuple(names)
        found = {part for value in rows.unique("label") if value is not None for part in self._parts(value)}
        if all(isinstance(value, int) for value in found):
            return {value: str(value) for value in sorted(found)}
        return tuple(sorted(map(str, found)))

    def _parts(self, value: Any) -> list[Any]:
        """The labels in one cell."""
        if self.problem_type != "multi_label":
            return [_as_integer(value)]
        if isinstance(value, str):
            return [part.strip() for part in value.split(self.label_separator) if part.strip()]
        return list(value) if isinstance(value, (list, tuple)) else [_as_integer(value)]

    def _index(self, value: Any) -> int | None:
        """Class index of one label as the data writes it, or None."""
        value = _as_integer(value)
        if isinstance(self.labels, dict):
            keys = list(self.labels)
            spellings = [value, str(value)] if isinstance(value, int) else [value]
            found = next((keys.index(spelling) for spelling in spellings if spelling in keys), None)
            return found if found is not None else self._index_of_name(value)
        if isinstance(value, int) and not isinstance(value, bool) and str(value) not in self.label_names:
            return value if 0 <= value < len(self.label_names) else None
        return self._index_of_name(value)

    def _index_of_name(self, value: Any) -> int | None:
        names = self.label_names
        return names.index(str(value)) if str(value) in names else None

    def label_problem(self, value: Any) -> str | None:
        """Why a cell is no legal label; see `Task.label_problem`."""
        if value is None:
            return "the label is missing"
        if self.problem_type == "regression":
            return None if _is_finite_number(value) else f"the label {value!r} is no finite number"
        unknown = [part for part in self._parts(value) if self._index(part) is None]
        if not unknown:
            return None
        return f"the label {unknown[0]!r} is not among task.labels ({', '.join(map(str, self._spellings()))})"

    def _spellings(self) -> Sequence[Any]:
        return list(self.labels) if isinstance(self.labels, dict) else self.label_names

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
            texts = [[str(text) for text in batch[column]] for column in self.text_columns[: 1 + paired]]
            encoded = dict(tokenizer(*texts, truncation=True, max_length=max_length))
            encoded[ROW] = indices
            if labelled:
                encoded["labels"] = [self._target(value) for value in batch["label"]]
            return encoded

        return rows.map(features, batched=True, with_indices=True, remove_columns=rows.column_names, desc="tokenizing")

    def _target(self, value: Any) -> int | float | list[float]:
        if self.problem_type == "regression":
            return float(value)
        indices = [index for part in self._parts(value) if (index := self._index(part)) is not None]
        if self.problem_type == "single_label":
            return indices[0]
        return [float(index in indices) for index in range(len(self.label_names))]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Pads each batch to its own longest row."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def decode(self, logits: np.ndarray, references: np.ndarray) -> Scored:
        """Predictions, probabilities and per-row losses of (rows, labels) logits."""
        import numpy as np

        logits = logits.astype(np.float64)
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

        parsed = [self._texts(position, value) for position, value in enumerate(inputs)]
        pairs = {len(texts) for texts in parsed}
        if len(pairs) > 1:
            raise DataError("some inputs are single texts and some are pairs; predict them in separate calls")
        columns = self.text_columns[: max(pairs, default=1)]
        return Dataset.from_dict({name: [texts[i] for texts in parsed] for i, name in enumerate(columns)})

    def _texts(self, position: int, value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, Mapping) and "text" in value:
            value = [value[column] for column in self.text_columns if column in value]
        if isinstance(value, (list, tuple)) and len(value) in (1, 2) and all(isinstance(text, str) for text in value):
            return tuple(value)
        raise DataError(
            f"input {position} is {value!r}; give a string, a pair of strings, or a mapping with 'text' (and 'text_pair')"
        )

    def answers(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """label, probability and all probabilities; labels for multi-label; value for regression."""
        import numpy as np

        logits = logits.astype(np.float64)
        if self.problem_type == "regression":
            return [{"value": float(value)} for value in logits[:, 0]]
        names = self.label_names
        answers = []
        for row in self._probabilities(logits):
            named = {name: float(probability) for name, probability in zip(names, row, strict=True)}
            if self.problem_type == "multi_label":
                answers.append({"labels": [name for name in names if named[name] > 0.5], "probabilities": named})
            else:
                best = max(named, key=named.__getitem__)
                answers.append({"label": best, "probability": named[best], "probabilities": named})
        return answers

    def describe(self, value: Any) -> str:
        """Label names, or the number."""
        if self.problem_type == "regression":
            return f"{value:.3f}"
        if self.problem_type == "multi_label":
            chosen = [name for name, flag in zip(self.label_names, value, strict=True) if flag]
            return ", ".join(chosen) or "(none)"
        return self.label_names[value]


def _as_integer(value: Any) -> Any:
    """1.0 as 1: spreadsheets and CSV readers turn integer labels into floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_finite_number(value: Any) -> bool:
    try:
        return abs(float(value)) < float("inf")
    except (TypeError, ValueError):
        return False
