"""What tasks have in common that learn from pairs of answers, of which one is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.labels import IGNORED
from peftkit.tasks import BASE, ROW, Collator, Encoded, Scored
from peftkit.tasks.exchanges import Exchange
from peftkit.tasks.generation import objects
from peftkit.tasks.padding import padded
from peftkit.tasks.preference import ExchangeTask, Likelihood, PreferenceTask

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pair = tuple[Likelihood, Likelihood]
_SHARED = (ROW, BASE)


class PairRows(ExchangeTask):
    """Rows with a better answer, `chosen`, and a worse one, `rejected`."""

    text_columns: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")
    answer_columns: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    cut_columns: ClassVar[tuple[str, ...]] = ("input_ids", "rejected_ids")

    def _needed_columns(self) -> tuple[str, ...]:
        return self.answer_columns  # a prompt may be what both begin with

    def exchange_problem(self, exchange: Exchange) -> str | None:
        """See `PreferenceTask.exchange_problem`."""
        chosen, rejected = exchange.answers
        return "chosen and rejected are the same, so that nothing is preferred" if chosen == rejected else None

    def feature(self, prompt: list[int], answers: list[list[int]], row: Mapping[str, Any]) -> dict[str, Any]:
        """See `PreferenceTask.feature`."""
        chosen, rejected = answers
        blank = [IGNORED] * len(prompt)
        return {
            "input_ids": prompt + chosen,
            "labels": blank + chosen,
            "rejected_ids": prompt + rejected,
            "rejected_labels": blank + rejected,
        }

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Chosen answers above the rejected ones, in the same order: (2 * rows, longest)."""
        fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}

        def collate(features: list[dict[str, Any]]) -> Mapping[str, Any]:
            if "rejected_ids" not in features[0]:
                return padded(features, fill)
            sequences = [(one["input_ids"], one["labels"]) for one in features]
            sequences += [(one["rejected_ids"], one["rejected_labels"]) for one in features]
            stacked = [
                {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels} for ids, labels in sequences
            ]
            shared = [{name: one[name] for name in _SHARED if name in one} for one in features]
            return {**padded(stacked, fill), **padded(shared, {})}

        return collate


class PairTask(PairRows, PreferenceTask):
    """Pairs of answers that are compared by their likelihoods; a prompt alone is answered."""

    def read(
        self, model: PreTrainedModel, batch: Mapping[str, Any], output: Any, *, generate: bool = True
    ) -> list[Any]:
        """Likelihoods of both answers of every row; without answers one is generated."""
        if "labels" not in batch:
            return super().read(model, batch, output, generate=generate)
        found = self.likelihoods(output, batch["labels"])
        half = len(found) // 2
        return list(zip(found[:half], found[half:], strict=True))

    def base_values(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> list[list[float]]:
        """Log-likelihoods of both answers; see `Task.base_values`."""
        pairs = self.read(model, batch, self.forward(model, batch))
        return [[-chosen[0], -rejected[0]] for chosen, rejected in pairs]

    def engine_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """See `Task.engine_batch`."""
        chosen, rejected = batch[BASE].T
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "completion_mask": (batch["labels"] != IGNORED).long(),
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        }

    def rewards(self, pairs: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Rewards (rows, 2) of the chosen and of the rejected answer.

        Args:
            pairs: (rows, 2, 2): of chosen and rejected the log-likelihood and the tokens.
            base: (rows, 2) log-likelihoods under the untuned model.
        """
        raise NotImplementedError

    def decode(self, outputs: Sequence[Any], encoded: Encoded) -> Scored:
        """Margins between the rewards; the likelihood is that of the chosen answer."""
        import numpy as np

        found = np.array(outputs, np.float64).reshape(-1, 2, 3)
        pairs = np.stack([-found[:, :, 0], found[:, :, 1]], axis=2)
        base = np.array(encoded.features[BASE], np.float64).reshape(-1, 2)
        rewards = self.rewards(pairs, base)
        margin = rewards[:, 0] - rewards[:, 1]
        gain = pairs[:, 0, 0] - pairs[:, 1, 0] - (base[:, 0] - base[:, 1])
        return Scored(
            objects([f"rewards {better:.3f} and {worse:.3f}" for better, worse in rewards]),
            objects([" | ".join(self.exchange(row).answers) for row in encoded.rows]),
            np.logaddexp(0, -margin),
            likelihood=found[:, 0],
            margins=np.stack([margin, gain], axis=1),
        )


def halves(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """A batch of pairs with the answers apart, under the names of TRL's older trainers."""
    parts = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": batch["labels"]}
    return {
        f"{answer}_{name}": part
        for name, whole in parts.items()
        for answer, part in zip(("chosen", "rejected"), whole.chunk(2), strict=True)
    }
