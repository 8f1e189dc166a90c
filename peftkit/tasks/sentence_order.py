"""Sentence order: which of two segments of a text came first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.tasks import ROW, Collator, Encoded, Head, Scored, tasks
from peftkit.tasks.documents import Frame, batch_of
from peftkit.tasks.language_model import RunningText
from peftkit.tasks.segments import asked_pairs, encoded_pairs, named, pairs, probabilities, segmented, single_words

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@tasks.register("sentence_order")
class SentenceOrder(RunningText):
    """Whether two segments that follow each other are in order or swapped.

    ALBERT, Lan et al. 2019, arXiv:1909.11942, section 3.1. Rows have a column `text`, one document each; an application
    gives pairs of texts.
    """

    label_names: ClassVar[tuple[str, ...]] = ("in_order", "swapped")
    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "token_type_ids")

    draw_seed: int = Field(0, ge=0)
    """Which pairs are swapped."""

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Accuracy: half of the pairs are swapped."""
        return ("accuracy",)

    def row_problems(self, rows: Dataset) -> dict[int, str]:
        """Texts that cannot be parted; see `Task.row_problems`."""
        return single_words(rows)

    def head(self) -> Head:
        """A linear layer over the pooled pair: (rows, hidden) -> (rows, 2)."""
        names = dict(enumerate(self.label_names))
        config = {"num_labels": 2, "id2label": names, "label2id": {name: index for index, name in names.items()}}
        return Head("AutoModelForSequenceClassification", config, peft_task_type="SEQ_CLS")

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per pair of segments; labels 0 in order, 1 swapped."""
        import numpy as np
        from datasets import Dataset

        if "text" not in rows.column_names:
            asked = encoded_pairs(rows, tokenizer, max_length)
            return Dataset.from_list([{**feature, ROW: row} for row, feature in enumerate(asked)])
        frame = Frame.of(tokenizer, texts=2)
        features = []
        for row, parts in enumerate(segmented(rows, tokenizer, size=frame.room(max_length))):
            draw = np.random.default_rng([self.draw_seed, row])
            for pair in pairs(parts):
                is_swapped = bool(draw.random() < 0.5)
                texts = [parts[place][:, 0].tolist() for place in (reversed(pair) if is_swapped else pair)]
                features.append({**frame.around(*texts), "labels": int(is_swapped), ROW: row})
        return Dataset.from_list(features)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads each batch to its own longest pair."""

        def collate(features: list[dict[str, Any]]) -> Mapping[str, Any]:
            return batch_of(features, tokenizer, self.inputs, numbers=("labels",))

        return collate

    def references(self, encoded: Encoded) -> np.ndarray:
        """0 in order, 1 swapped."""
        import numpy as np

        return np.asarray(encoded.features["labels"], np.int64)

    def decode(self, outputs: Sequence[Any], encoded: Encoded) -> Scored:
        """Predictions, probabilities and losses of each pair."""
        import numpy as np

        references = self.references(encoded)
        both = probabilities(outputs)
        losses = -np.log(both[np.arange(len(both)), references])
        rows = np.asarray(encoded.features[ROW], np.int64)
        return Scored(both.argmax(axis=1), references, losses, both, rows=rows)

    def rows(self, inputs: Sequence[Any]) -> Dataset:
        """Pairs of texts; see `Task.rows`."""
        return asked_pairs(inputs)

    def answers(self, outputs: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """Which came first: label (in_order, swapped), probability, probabilities."""
        return named(outputs, self.label_names)

    def describe(self, value: Any) -> str:
        """in_order or swapped."""
        return self.label_names[int(value)]
