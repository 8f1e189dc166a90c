"""Masked language modelling: find tokens from those on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.errors import DataError
from peftkit.labels import IGNORED
from peftkit.tasks import ROW, Collator, Encoded, Head, tasks
from peftkit.tasks.documents import Frame, batch_of, cut, separated, tokenized
from peftkit.tasks.generation import token_likelihoods
from peftkit.tasks.language_model import PROMPT, LanguageModel
from peftkit.tasks.masking import Masking

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CANDIDATES = 5


class MaskedTokens(LanguageModel):
    """A task that masks tokens: of those drawn 80 % become the mask token, 10 % another one, 10 % stay."""

    draws: ClassVar[bool] = True
    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "token_type_ids")

    mask_probability: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens of each block that have to be found, at least one. Special tokens are never among them."""
    whole_word: bool = False
    """Mask all tokens of a word together (as BERT's later checkpoints)."""
    draw_seed: int = Field(0, ge=0)
    """Which tokens are masked in evaluation, always the same; training masks anew in each epoch, by the recipe's
    seed."""

    def masked(
        self, features: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, numbers: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """A padded batch of features with masks, and its labels; see `batch_of`."""
        masking = Masking.of(tokenizer, probability=self.mask_probability, seed=self.draw_seed)
        drawn = [{**feature, **masking.apply(feature)} for feature in features]
        return batch_of(drawn, tokenizer, (*self.inputs, "labels"), numbers=numbers)

    def forward(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> Any:
        """The output for one batch; of a batch with labels only the logits (labelled, vocabulary) of labelled tokens.

        As in BERT's original, the vocabulary is asked about those only: it is half of a small model's work.
        """
        with _asked_at(model, batch["labels"]) if "labels" in batch else nullcontext():
            return super().forward(model, batch)

    def aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of labelled tokens, and their labels."""
        return logits, labels[labels != IGNORED]

    def read(
        self, model: PreTrainedModel, batch: Mapping[str, Any], output: Any, *, generate: bool = True
    ) -> list[Any]:
        """The likelihood of the masked tokens of each feature; see `LanguageModel.read`."""
        import torch

        counts = (batch["labels"] != IGNORED).sum(dim=1).tolist()
        logits, labels = self.aligned(self.logits(output), batch["labels"])
        parts = zip(torch.split(logits, counts), torch.split(labels, counts), strict=True)
        return [token_likelihoods(part[None], wanted[None])[0] for part, wanted in parts]


@contextmanager
def _asked_at(model: Any, labels: Tensor) -> Iterator[None]:
    """Let the output layer see only the tokens that have a label: (rows, length, hidden) -> (labelled, hidden)."""

    def choose(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][:, -labels.shape[1] :][labels != IGNORED],)  # virtual tokens stand in front

    hook = getattr(model, "module", model).get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()


@tasks.register("masked_lm")
class MaskedLM(MaskedTokens):
    """Masked tokens of running text.

    BERT, Devlin et al. 2018, arXiv:1810.04805, section 3.1. Rows have a column `text`; an application gives texts with
    mask tokens and gets candidates for each.
    """

    streams: ClassVar[bool] = True

    pack: bool = True
    """Join all texts, separated by the tokenizer's end token, and cut them into blocks of model.max_length tokens;
    false: every text begins a block of its own. Nothing is left out either way: the last block is shorter."""

    def head(self) -> Head:
        """The vocabulary of the base over every token; what the base lacks of it is new."""
        return Head("AutoModelForMaskedLM", peft_task_type="FEATURE_EXTRACTION", is_new=False)

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per block; of an application one per text, with flags where it asks."""
        from datasets import Dataset

        frame = Frame.of(tokenizer, texts=1)
        room = frame.room(max_length)
        if "text" not in rows.column_names:
            return _asked(rows, tokenizer, frame, room)
        documents = tokenized(rows, tokenizer)
        if self.pack:
            documents = separated(documents, frame.pieces[-1][-1])
        features = []
        for block in cut(documents, room, pack=self.pack):
            ids, words, _ = block.tokens.T.tolist()
            feature: dict[str, Any] = {**frame.around(ids), ROW: block.row}
            if self.whole_word:
                feature["words"] = frame.around(words)["input_ids"]
            features.append(feature)
        return Dataset.from_list(features)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Masks each feature and pads each batch to its own longest block."""

        def collate(features: list[dict[str, Any]]) -> Mapping[str, Any]:
            if "blanks" in features[0]:
                return batch_of(features, tokenizer, (*self.inputs, "blanks"))
            return self.masked(features, tokenizer)

        return collate

    def read(
        self, model: PreTrainedModel, batch: Mapping[str, Any], output: Any, *, generate: bool = True
    ) -> list[Any]:
        """The likelihood of masked tokens, or of a batch without labels the best candidates for each blank."""
        if "labels" in batch:
            return super().read(model, batch, output, generate=generate)
        found = []
        for logits, blanks in zip(self.logits(output), batch["blanks"], strict=True):
            best = logits[blanks == 1].float().softmax(dim=-1).topk(_CANDIDATES)
            found.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
        return found

    def answers(self, outputs: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """The text with the best candidates in it, and for each mask its candidates with their probabilities."""
        tokenizer = encoded.tokenizer
        answers = []
        for blanks, ids, flags in zip(outputs, encoded.features["input_ids"], encoded.features["blanks"], strict=True):
            best = iter(candidates[0] for candidates, _ in blanks)
            filled = [next(best) if flag else token for token, flag in zip(ids, flags, strict=True)]
            fills = [
                [
                    {"token": tokenizer.decode([token]).strip(), "probability": probability}
                    for token, probability in zip(*candidates, strict=True)
                ]
                for candidates in blanks
            ]
            answers.append({"text": tokenizer.decode(filled, skip_special_tokens=True), "fills": fills})
        return answers


def _asked(rows: Dataset, tokenizer: PreTrainedTokenizerBase, frame: Frame, room: int) -> Dataset:
    """Features of texts with mask tokens, cut at `room` tokens."""
    from datasets import Dataset

    features = []
    for place, text in enumerate(rows[PROMPT]):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:room]
        feature: dict[str, Any] = frame.around(ids)
        feature["blanks"] = [int(token == tokenizer.mask_token_id) for token in feature["input_ids"]]
        if not any(feature["blanks"]):
            raise DataError(
                f"input {place} has no {tokenizer.mask_token} among its first {room} tokens; write one for each token "
                "to be found"
            )
        features.append({**feature, ROW: place})
    return Dataset.from_list(features)
