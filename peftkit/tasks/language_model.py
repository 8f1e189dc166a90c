"""What tasks share that learn from running text: rows of `text`, and how likely the model finds held-out tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftkit.errors import DataError
from peftkit.tasks import ROW, Encoded, Scored, Task
from peftkit.tasks.columns import check_columns
from peftkit.tasks.generation import likelihoods_of

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedModel

PROMPT = "prompt"
"""Column of what an application asks; rows to learn from have `text` instead."""
_SHOWN = 200


class RunningText(Task):
    """A task that needs nothing but texts: its labels are made of them."""

    text_columns: ClassVar[tuple[str, ...]] = ("text",)
    cut_columns: ClassVar[tuple[str, ...]] = ()  # long texts go on in further blocks
    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")
    """What of a batch the model takes."""

    def resolved(self, splits: DatasetDict) -> Self:
        """Unchanged; see `Task.resolved`."""
        check_columns(splits, self.text_columns)
        for split, rows in splits.items():
            _check_strings(split, rows)
        return self

    def forward(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> Any:
        """See `Task.forward`."""
        return model(**{name: batch[name] for name in self.inputs if name in batch})


class LanguageModel(RunningText):
    """A task whose labels are tokens of its texts."""

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Perplexity, and the share of tokens guessed right."""
        return ("perplexity", "token_accuracy")

    def read(
        self, model: PreTrainedModel, batch: Mapping[str, Any], output: Any, *, generate: bool = True
    ) -> list[Any]:
        """The likelihood of each feature's labels: three numbers, as in `Scored.likelihood`."""
        return list(likelihoods_of(self, output, batch["labels"]))

    def references(self, encoded: Encoded) -> np.ndarray:
        """None to compare with.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"the task {self.name!r} predicts tokens, not answers; score it by perplexity and token_accuracy, and "
            "remove other metrics"
        )

    def decode(self, outputs: Sequence[Any], encoded: Encoded) -> Scored:
        """Likelihoods of blocks; as predictions and references what they are in words."""
        import numpy as np

        likelihood = np.array(outputs, np.float64).reshape(-1, 3)
        means = likelihood[:, 0] / np.maximum(likelihood[:, 1], 1)
        shown = [
            f"perplexity {np.exp(mean):.1f} over {count:.0f} tokens"
            for mean, count in zip(means, likelihood[:, 1], strict=True)
        ]
        return Scored(
            np.array(shown, object),
            np.array(self.texts(encoded), object),
            means,
            likelihood=likelihood,
            rows=np.asarray(encoded.features[ROW], np.int64),
        )

    def texts(self, encoded: Encoded) -> list[str]:
        """The beginning of each feature, for reports."""
        shown = [ids[:_SHOWN] for ids in encoded.features["input_ids"]]
        return [text[:_SHOWN] for text in encoded.tokenizer.batch_decode(shown)]

    def rows(self, inputs: Sequence[Any]) -> Dataset:
        """Strings, or mappings with `text`, as rows; see `Task.rows`."""
        from datasets import Dataset

        if isinstance(inputs, (str, Mapping)):
            raise DataError(f"the inputs are {inputs!r}; give a list of inputs, even for one")
        texts = [value.get("text") if isinstance(value, Mapping) else value for value in inputs]
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"input {position} is {inputs[position]!r}; give a string, or a mapping with 'text'")
        return Dataset.from_dict({PROMPT: texts})


def _check_strings(split: str, rows: Dataset) -> None:
    kind = str(getattr(rows.features["text"], "dtype", "list"))
    if "string" not in kind:
        raise DataError(
            f"the column 'text' of split {split!r} holds {kind}, not text; map another column in the recipe with  "
            "data.columns: {text: ...}"
        )
