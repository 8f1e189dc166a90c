"""Span corruption: an encoder-decoder writes the stretches that are missing from a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.errors import DataError
from peftkit.tasks import ROW, Collator, Encoded, Head, tasks
from peftkit.tasks.documents import batch_of, cut, separated, tokenized
from peftkit.tasks.generation import decoder_inputs
from peftkit.tasks.language_model import PROMPT, LanguageModel
from peftkit.tasks.masking import generator_of

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@tasks.register("span_corruption")
class SpanCorruption(LanguageModel):
    """Missing spans of running text, each marked by a sentinel.

    T5, Raffel et al. 2020, arXiv:1910.10683, section 3.1.4. Rows have a column `text`; an application gives texts with
    sentinels and gets what belongs there.
    """

    streams: ClassVar[bool] = True
    reads_likelihoods: ClassVar[bool] = True
    draws: ClassVar[bool] = True

    noise_density: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens that is missing."""
    mean_span_length: float = Field(3.0, ge=1)
    """Tokens of a missing span, on average."""
    pack: bool = True
    """Join all texts, separated by the end token, and cut them into blocks of model.max_length tokens; false: every
    text begins a block of its own. Nothing is left out either way: the last block is shorter."""
    draw_seed: int = Field(0, ge=0)
    """Which spans are missing in evaluation, always the same; training draws anew in each epoch, by the recipe's
    seed."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest answer to an application, in tokens."""

    def head(self) -> Head:
        """The base's own decoder."""
        return Head("AutoModelForSeq2SeqLM", peft_task_type="SEQ_2_SEQ_LM", is_new=False, generates=True)

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per block, whole; of an application one per text, with the end token."""
        from datasets import Dataset

        end = tokenizer.eos_token_id
        if "text" not in rows.column_names:
            texts = tokenized(rows.rename_columns({PROMPT: "text"}), tokenizer)
            ids = [[*text[: max_length - 1, 0].tolist(), end] for text in texts]
            features = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], ROW: range(len(ids))}
            return Dataset.from_dict(features)
        documents = tokenized(rows, tokenizer)
        if self.pack:
            documents = separated(documents, end)
        blocks = cut(documents, max_length - 1, pack=self.pack)
        _, spans = self._counts(max(len(block.tokens) for block in blocks))
        needed = spans + 2  # one more where a span is cut in two by the shift, and one behind the last
        if needed > len(sentinels(tokenizer)):
            raise DataError(
                f"model.max_length {max_length} needs {needed} sentinels, and {type(tokenizer).__name__} has only "
                f"{len(sentinels(tokenizer))} (<extra_id_0> and so on); lower it, or raise "
                "task.mean_span_length"
            )
        return Dataset.from_dict(
            {"input_ids": [block.tokens[:, 0] for block in blocks], ROW: [block.row for block in blocks]}
        )

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Takes spans out of each block, and pads each batch to its own longest text and target."""
        markers, end = sentinels(tokenizer), tokenizer.eos_token_id

        def collate(features: list[dict[str, Any]]) -> Mapping[str, Any]:
            if "attention_mask" in features[0]:
                return batch_of(features, tokenizer, self.inputs)
            return batch_of([corrupted(feature) for feature in features], tokenizer, (*self.inputs, "labels"))

        def corrupted(feature: Mapping[str, Any]) -> dict[str, Any]:
            missing = self._missing(generator_of(feature, seed=self.draw_seed), len(feature["input_ids"]))
            text, target = apart(feature["input_ids"], missing, markers)
            ids, labels = [*text, end], [*target, end]
            return {**feature, "input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}

        return collate

    def _counts(self, length: int) -> tuple[int, int]:
        """Missing tokens of a text, and the spans they are in."""
        tokens = min(max(round(length * self.noise_density), 1), length - 1)
        return tokens, max(1, min(round(tokens / self.mean_span_length), length - tokens, tokens))

    def _missing(self, draw: np.random.Generator, length: int) -> np.ndarray:
        """(length,) whether a token is missing: spans of random lengths, shifted around by a random number of tokens.

        Without the shift (`random_roll` of T5's code) the end of a text would always be missing, and its beginning
        never.
        """
        import numpy as np

        if length < 2:
            return np.zeros(length, bool)
        tokens, spans = self._counts(length)
        lengths = np.stack([_parts(draw, length - tokens, spans), _parts(draw, tokens, spans)], axis=1)
        missing = np.repeat(np.tile([False, True], spans), lengths.flatten())
        return np.roll(missing, int(draw.integers(length)))

    def forward(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> Any:
        """Logits of every token of the target."""
        inputs = {name: batch[name] for name in self.inputs}
        return model(**inputs, decoder_input_ids=decoder_inputs(model, batch))

    def read(
        self, model: PreTrainedModel, batch: Mapping[str, Any], output: Any, *, generate: bool = True
    ) -> list[Any]:
        """The likelihood of each target, or of a batch without labels what the model writes for it."""
        if "labels" in batch:
            return super().read(model, batch, output, generate=generate)
        inputs = {name: batch[name] for name in self.inputs}
        written: Any = model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        return list(written.tolist())

    def answers(self, outputs: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """The text with what belongs at each sentinel, and these stretches alone."""
        tokenizer = encoded.tokenizer
        markers = sentinels(tokenizer)
        answers = []
        for ids, written in zip(encoded.features["input_ids"], outputs, strict=True):
            spans = _spans(written, markers)
            whole = [token for given in ids for token in (spans.get(given, []) if given in markers else [given])]
            asked = [spans.get(token, []) for token in ids if token in markers]
            fills = [tokenizer.decode(span, skip_special_tokens=True).strip() for span in asked]
            answers.append({"text": tokenizer.decode(whole, skip_special_tokens=True), "fills": fills})
        return answers


def sentinels(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of <extra_id_0>, <extra_id_1> and so on.

    Raises:
        DataError: the tokenizer has none.
    """
    vocabulary = tokenizer.get_vocab()
    found: list[int] = []
    while (name := f"<extra_id_{len(found)}>") in vocabulary:
        found.append(vocabulary[name])
    if not found:
        raise DataError(
            f"{type(tokenizer).__name__} has no sentinels (<extra_id_0> and so on) to mark spans with; take a base "
            "such as T5"
        )
    return found


def apart(tokens: Sequence[int], missing: np.ndarray, markers: Sequence[int]) -> tuple[list[int], list[int]]:
    """The text with a sentinel for every stretch that is missing, and the target: every sentinel with its stretch.

    A sentinel closes the target of a text that does not end in a missing stretch, as in figure 2 of the paper.
    """
    free = iter(markers)
    text: list[int] = []
    target: list[int] = []
    before = False
    for token, absent in zip(tokens, missing.tolist(), strict=True):
        if absent and not before:
            marker = next(free)
            text.append(marker)
            target.append(marker)
        (target if absent else text).append(token)
        before = absent
    return text, target if before else [*target, next(free)]


def _parts(draw: np.random.Generator, total: int, count: int) -> np.ndarray:
    """(count,) lengths of at least 1 that add up to `total`, all divisions being equally likely."""
    import numpy as np

    cuts = np.sort(draw.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff([0, *cuts, total])


def _spans(written: Sequence[int], markers: Sequence[int]) -> dict[int, list[int]]:
    """What was written behind each sentinel."""
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in written:
        if token in markers:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return spans
