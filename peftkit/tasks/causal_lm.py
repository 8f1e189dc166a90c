"""Causal language modelling: predict each token from those before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.errors import DataError
from peftkit.labels import IGNORED
from peftkit.tasks import ROW, Collator, Encoded, Head, tasks
from peftkit.tasks.documents import batch_of, cut, tokenized
from peftkit.tasks.language_model import PROMPT, LanguageModel

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@tasks.register("causal_lm")
class CausalLM(LanguageModel):
    """The next token of running text.

    Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training". Rows have a column `text`; an
    application gets the perplexity of its texts.
    """

    streams: ClassVar[bool] = True
    reads_likelihoods: ClassVar[bool] = True

    pack: bool = True
    """Join all texts, each closed by the end token, and cut them into blocks of model.max_length tokens; false: every
    text begins a block of its own. Nothing is left out either way: the last block is shorter."""

    def head(self) -> Head:
        """The base's own output layer: (rows, length, hidden) -> (rows, length, vocabulary)."""
        # Encoders such as BERT would see the tokens that they have to predict.
        return Head("AutoModelForCausalLM", {"is_decoder": True}, peft_task_type="CAUSAL_LM", is_new=False)

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per block; of an application one per text, cut at `max_length`."""
        from datasets import Dataset

        asked = "text" not in rows.column_names
        texts = rows.rename_columns({PROMPT: "text"}) if asked else rows
        documents = tokenized(texts, tokenizer, special=True)
        if asked:
            documents = [document[:max_length] for document in documents]
            if empty := [position for position, document in enumerate(documents) if not len(document)]:
                raise DataError(f"input {empty[0]} is empty; give it a text")
        else:
            documents = [_closed(document, tokenizer) for document in documents]
        blocks = cut(documents, max_length, pack=self.pack and not asked)
        return Dataset.from_dict(
            {"input_ids": [block.tokens[:, 0] for block in blocks], ROW: [block.row for block in blocks]}
        )

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads each batch to its own longest block; labels are the ids."""
        import torch

        def collate(features: list[dict[str, Any]]) -> Mapping[str, Any]:
            whole = [{**feature, "attention_mask": [1] * len(feature["input_ids"])} for feature in features]
            batch = batch_of(whole, tokenizer, self.inputs)
            # Not by the padding token: it may be the end token, which is to be learnt.
            batch["labels"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], IGNORED)
            return batch

        return collate

    def aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of a token predict the one behind it."""
        return logits[:, :-1], labels[:, 1:]

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """Tokens that have one before them; see `Task.items`."""
        items: Tensor = (batch["labels"][:, 1:] != IGNORED).sum()
        return items

    def answers(self, outputs: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """Perplexity of each text, and over how many tokens; of a text without a second token none."""
        import numpy as np

        return [
            {"perplexity": float(np.exp(summed / count)) if count else None, "tokens": int(count)}
            for summed, count, _ in outputs
        ]


def _closed(document: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """A document with the end token behind it, which some tokenizers write themselves."""
    import numpy as np

    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise DataError(
            f"{type(tokenizer).__name__} has no end token to close texts with; name one as eos_token in the "
            "tokenizer_config.json of the base"
        )
    if len(document) and document[-1, 0] == end:
        return document
    return np.concatenate([document, [[end, -1, 0]]])
