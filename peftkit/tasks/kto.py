"""Kahneman-Tversky optimization: from answers that are good or bad, without pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from peftkit.errors import DataError
from peftkit.labels import IGNORED
from peftkit.tasks import BASE, Collator, Encoded, Engine, Scored, tasks
from peftkit.tasks.generation import objects
from peftkit.tasks.padding import padded
from peftkit.tasks.preference import PreferenceTask

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WORDS: Mapping[Any, bool] = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
_OTHER = "other_"
"""Prefix of what belongs to a prompt with the answer to another prompt."""


@tasks.register("kto")
class KahnemanTversky(PreferenceTask):
    """Raise the likelihood of good answers and lower that of bad ones, measured against the base model.

    Ethayarajh et al. 2024, arXiv:2402.01306. Rows have `prompt`, `completion` and `label`: true where the answer is
    good.
    """

    text_columns: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    label_column: ClassVar[str | None] = "label"
    answer_columns: ClassVar[tuple[str, ...]] = ("completion",)

    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """Name of the loss in TRL. kto estimates how far the model has moved from the rows of each micro-batch, so that
    micro-batches do not add up to one batch, and need two rows or more; apo_zero_unpaired does without."""
    beta: float = Field(0.1, gt=0)
    """How strongly the tuned model is held to the base."""
    good_weight: float = Field(1.0, gt=0)
    """Weight of good answers; the paper keeps good weight * good rows within 1 to 4/3 of the same of the bad."""
    bad_weight: float = Field(1.0, gt=0)
    """Weight of bad answers."""

    @property
    def engine(self) -> Engine:
        """TRL's KTOTrainer."""
        options = {
            "loss_type": self.loss_type,
            "beta": self.beta,
            "desirable_weight": self.good_weight,
            "undesirable_weight": self.bad_weight,
            "disable_dropout": self.disable_dropout,
            "max_length": None,
            "precompute_ref_log_probs": True,
            "train_sampling_strategy": "sequential",  # TRL asks for it, for the sake of pairs that `encode` makes
        }
        return Engine("KTOTrainer", "KTOConfig", options, mirrors_base=True)

    def training_problem(self, *, batch_size: int, accumulation_steps: int, batching: str) -> tuple[str, str] | None:
        """See `Task.training_problem`."""
        if self.loss_type == "kto" and batch_size < 2:
            return "batch_size", "kto estimates a divergence from the rows of a micro-batch and needs at least 2"
        return None

    def resolved(self, splits: DatasetDict) -> Self:
        """See `Task.resolved`; training needs answers of both kinds."""
        resolved = super().resolved(splits)
        kinds = {_WORDS.get(_folded(cell)) for cell in splits["train"]["label"]}
        if len(kinds) == 1 and (only := next(iter(kinds))) is not None:
            raise DataError(
                f"every label of split 'train' is {only}, so that there is nothing to tell apart; add rows whose "
                f"answers are {'bad' if only else 'good'}"
            )
        return resolved

    def _needed_columns(self) -> tuple[str, ...]:
        return (*super()._needed_columns(), "label")

    def label_problem(self, value: Any) -> str | None:
        """Why a cell is neither true nor false."""
        return None if _folded(value) in _WORDS else f"{value!r} is neither true nor false"

    def feature(self, prompt: list[int], answers: list[list[int]], row: Mapping[str, Any]) -> dict[str, Any]:
        """See `PreferenceTask.feature`."""
        ids = prompt + answers[0]
        labels = [IGNORED] * len(prompt) + answers[0]
        return {"input_ids": ids, "labels": labels, "good": int(_WORDS[_folded(row["label"])])}

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """See `PreferenceTask.encode`; beside each row its prompt with the answer from half the rows further on.

        These mismatched answers tell how far the model has moved on the whole (section 4.1 of the paper). TRL takes
        them from the neighbour, which in many data sets is another answer to the same prompt.
        """
        features = super().encode(rows, tokenizer, max_length)
        if "labels" not in features.column_names:
            return features
        labels = list(features["labels"])
        starts = [sum(label == IGNORED for label in row) for row in labels]
        ids, wanted = [], []
        for place, whole in enumerate(features["input_ids"]):
            other = (place + len(labels) // 2) % len(labels)
            prompt, answer = whole[: starts[place]], labels[other][starts[other] :]
            ids.append([*prompt, *answer][:max_length])
            wanted.append([*[IGNORED] * len(prompt), *answer][:max_length])
        return features.add_column(f"{_OTHER}input_ids", ids).add_column(f"{_OTHER}labels", wanted)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Pads on the right, with a mask for each of both sequences."""
        fill = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "labels": IGNORED}
        fill |= {f"{_OTHER}{name}": value for name, value in fill.items()}

        def collate(features: list[dict[str, Any]]) -> Mapping[str, Any]:
            masks = [
                {f"{prefix}attention_mask": [1] * len(one[f"{prefix}input_ids"]) for prefix in _prefixes(one)}
                for one in features
            ]
            return padded([{**one, **mask} for one, mask in zip(features, masks, strict=True)], fill)

        return collate

    def read(
        self, model: PreTrainedModel, batch: Mapping[str, Any], output: Any, *, generate: bool = True
    ) -> list[Any]:
        """The likelihood of every answer; without answers one is generated."""
        if "labels" not in batch:
            return super().read(model, batch, output, generate=generate)
        return list(self.likelihoods(output, batch["labels"]))

    def base_values(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> list[list[float]]:
        """Log-likelihoods of every answer, and of another behind the same prompt; see `Task.base_values`."""
        other = {name.removeprefix(_OTHER): part for name, part in batch.items() if name.startswith(_OTHER)}
        pairs = zip(
            self.likelihoods(self.forward(model, batch), batch["labels"]),
            self.likelihoods(self.forward(model, other), other["labels"]),
            strict=True,
        )
        return [[-own[0], -mismatched[0]] for own, mismatched in pairs]

    def engine_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """See `Task.engine_batch`."""
        own, other = batch[BASE].T
        given = {"label": batch["good"].bool(), "ref_logps": own, "ref_KL_logps": other}
        for prefix, theirs in (("", ""), (_OTHER, "KL_")):
            given |= {f"{theirs}{name}": batch[f"{prefix}{name}"] for name in ("input_ids", "attention_mask")}
            given[f"{theirs}completion_mask"] = (batch[f"{prefix}labels"] != IGNORED).long()
        return given

    def decode(self, outputs: Sequence[Any], encoded: Encoded) -> Scored:
        """Rewards of good answers, and those of bad ones turned round, as margins."""
        import numpy as np

        likelihood = np.array(outputs, np.float64).reshape(-1, 3)
        good = np.array(encoded.features["good"], bool)
        gain = np.where(good, 1, -1) * (-likelihood[:, 0] - np.array(encoded.features[BASE], np.float64)[:, 0])
        rewards = self.beta * np.where(good, gain, -gain)
        return Scored(
            objects([f"rewards {reward:.3f}" for reward in rewards]),
            objects([f"{row['label']}: {self.exchange(row).answers[0]}" for row in encoded.rows]),
            np.logaddexp(0, -self.beta * gain),
            likelihood=likelihood,
            margins=np.stack([self.beta * gain, gain], axis=1),
        )


def _prefixes(feature: Mapping[str, Any]) -> list[str]:
    return [prefix for prefix in ("", _OTHER) if f"{prefix}input_ids" in feature]


def _folded(value: Any) -> Any:
    """A label as `_WORDS` has it; cells of tables may be text or numbers."""
    if isinstance(value, str):
        return value.strip().lower()
    return value if isinstance(value, (bool, int, float)) else None
