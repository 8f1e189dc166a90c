"""BERT's two objectives at once: masked tokens, and whether a segment follows another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftkit.errors import CapabilityError, DataError
from peftkit.tasks import ROW, Collator, Criterion, Encoded, Head, Scored, tasks
from peftkit.tasks.documents import Frame, batch_of
from peftkit.tasks.masked_lm import MaskedTokens
from peftkit.tasks.segments import (
    asked_pairs,
    encoded_pairs,
    named,
    pairs,
    probabilities,
    segmented,
    single_words,
)

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_NEXT = "next_sentence_label"
_WITH_BOTH_HEADS = ("bert", "big_bird", "ernie", "fnet", "megatron-bert", "mobilebert")


@tasks.register("masked_lm_nsp")
class MaskedLMWithNextSentence(MaskedTokens):
    """Masked tokens and next sentence prediction.

    Of two segments the second follows the first in half of the cases, else it is from another text (BERT, Devlin et
    al. 2018, arXiv:1810.04805, section 3.1). Rows have a column `text`,
    one document each; an application gives pairs of texts.
    """

    label_names: ClassVar[tuple[str, ...]] = ("next", "random")

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Perplexity and accuracy of masked tokens; accuracy of next sentence prediction."""
        return ("perplexity", "token_accuracy", "accuracy")

    def suited(self, config: PretrainedConfig) -> Self:
        """Only bases whose architecture has both heads; see `Task.suited`."""
        if config.model_type not in _WITH_BOTH_HEADS:
            raise CapabilityError(
                f"task 'masked_lm_nsp' needs an architecture with a head for next sentences "
                f"({', '.join(_WITH_BOTH_HEADS)}), and the base model is {config.model_type!r}; use  task: masked_lm"
            )
        return self

    def row_problems(self, rows: Dataset) -> dict[int, str]:
        """Texts that cannot be parted, and a text without another to draw from; see `Task.row_problems`."""
        if len(rows) == 1:
            return {0: "it is the only text, and half of the pairs need one of another text (see data.text_rows)"}
        return single_words(rows)

    def head(self) -> Head:
        """Both heads of the base's pretraining; what the base lacks of them is new."""
        return Head("AutoModelForPreTraining", peft_task_type="FEATURE_EXTRACTION", is_new=False)

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per pair of segments, with `next_sentence_label`: 0 next, 1 random."""
        import numpy as np
        from datasets import Dataset

        if "text" not in rows.column_names:
            asked = encoded_pairs(rows, tokenizer, max_length)
            return Dataset.from_list([{**feature, ROW: row} for row, feature in enumerate(asked)])
        frame = Frame.of(tokenizer, texts=2)
        documents = segmented(rows, tokenizer, size=frame.room(max_length))
        features = []
        for row, parts in enumerate(documents):
            draw = np.random.default_rng([self.draw_seed, row])
            for first, second in pairs(parts):
                is_random = bool(draw.random() < 0.5)
                pair = parts[first], _elsewhere(draw, documents, row) if is_random else parts[second]
                feature: dict[str, Any] = frame.around(*(part[:, 0].tolist() for part in pair))
                if self.whole_word:
                    feature["words"] = frame.around(*(part[:, 1].tolist() for part in pair))["input_ids"]
                features.append({**feature, _NEXT: int(is_random), ROW: row})
        return Dataset.from_list(features)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Masks each pair and pads each batch to its own longest pair."""

        def collate(features: list[dict[str, Any]]) -> Mapping[str, Any]:
            if _NEXT not in features[0]:
                return batch_of(features, tokenizer, self.inputs)
            return self.masked(features, tokenizer, numbers=(_NEXT,))

        return collate

    def logits(self, output: Any) -> Tensor:
        """Of the masked tokens; see `Task.logits`."""
        logits: Tensor = output["prediction_logits"]
        return logits

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """(2,): masked tokens, and pairs."""
        import torch

        return torch.stack([super().items(batch), torch.tensor(len(batch[_NEXT]), device=batch[_NEXT].device)])

    def loss(self, output: Any, batch: Mapping[str, Any], *, criterion: Criterion, items: Tensor) -> Tensor:
        """Mean over masked tokens plus mean over pairs."""
        from torch.nn.functional import cross_entropy

        masked = super().loss(output, batch, criterion=criterion, items=items[0])
        following = cross_entropy(output["seq_relationship_logits"].float(), batch[_NEXT], reduction="sum")
        return masked + following / items[1]

    def read(
        self, model: PreTrainedModel, batch: Mapping[str, Any], output: Any, *, generate: bool = True
    ) -> list[Any]:
        """The likelihood of masked tokens, None without labels, and the two logits of each pair."""
        following = output["seq_relationship_logits"].float().tolist()
        likelihoods: list[Any] = [None] * len(following)
        if "labels" in batch:
            likelihoods = super().read(model, batch, output, generate=generate)
        return list(zip(likelihoods, following, strict=True))

    def references(self, encoded: Encoded) -> np.ndarray:
        """0 next, 1 random."""
        import numpy as np

        return np.asarray(encoded.features[_NEXT], np.int64)

    def decode(self, outputs: Sequence[Any], encoded: Encoded) -> Scored:
        """Next sentence predictions, beside the likelihoods of masked tokens."""
        import numpy as np

        references = self.references(encoded)
        both = probabilities([following for _, following in outputs])
        likelihood = np.array([likelihood for likelihood, _ in outputs], np.float64).reshape(-1, 3)
        losses = likelihood[:, 0] / np.maximum(likelihood[:, 1], 1)
        losses -= np.log(both[np.arange(len(both)), references])
        rows = np.asarray(encoded.features[ROW], np.int64)
        return Scored(both.argmax(axis=1), references, losses, both, likelihood, rows)

    def rows(self, inputs: Sequence[Any]) -> Dataset:
        """Pairs of texts; see `Task.rows`."""
        return asked_pairs(inputs)

    def answers(self, outputs: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """Whether the second text follows the first: label (next, random), probability, probabilities."""
        return named([following for _, following in outputs], self.label_names)

    def describe(self, value: Any) -> str:
        """next or random."""
        return self.label_names[int(value)]


def _elsewhere(draw: np.random.Generator, documents: Sequence[Sequence[np.ndarray]], row: int) -> np.ndarray:
    """A segment of another document."""
    if len(documents) < 2:
        raise DataError("there is one text only, and half of the pairs need a segment of another; give more texts")
    other = documents[(row + 1 + int(draw.integers(len(documents) - 1))) % len(documents)]
    return other[int(draw.integers(len(other)))]
