"""Reward models: a number for an answer, learnt from pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from peftkit.errors import DataError
from peftkit.results import PART_SEPARATOR
from peftkit.tasks import ROW, Encoded, Engine, Head, Scored, tasks
from peftkit.tasks.conversations import ConversationError, turns_of
from peftkit.tasks.exchanges import PROMPT, Writer, exchange_of
from peftkit.tasks.generation import objects
from peftkit.tasks.pairs import PairRows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMPLETION = "completion"


@tasks.register("reward_model")
class RewardModel(PairRows):
    """A number that is higher for better answers, by the model of Bradley and Terry.

    Ouyang et al. 2022, arXiv:2203.02155, section 3.5. Rows have `prompt`, `chosen` and `rejected`, as texts or as
    turns.
    """

    center: float | None = Field(None, gt=0)
    """Weight of a penalty that draws the rewards of a pair to a sum of 0; none: their level is left to chance."""

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """How often the better answer is rewarded more, and by how much."""
        return ("reward_accuracy", "reward_margin")

    @property
    def engine(self) -> Engine:
        """TRL's RewardTrainer."""
        options = {
            "center_rewards_coefficient": self.center,
            "disable_dropout": self.disable_dropout,
            "max_length": None,
        }
        return Engine("RewardTrainer", "RewardConfig", options)

    def head(self) -> Head:
        """(rows, length) -> (rows, 1)."""
        return Head("AutoModelForSequenceClassification", {"num_labels": 1}, peft_task_type="SEQ_CLS")

    def forward(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> Any:
        """See `Task.forward`."""
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    def engine_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """See `Task.engine_batch`."""
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def read(
        self, model: PreTrainedModel, batch: Mapping[str, Any], output: Any, *, generate: bool = True
    ) -> list[Any]:
        """Rewards of both answers of every pair; of the one answer that an application gives."""
        rewards = self.logits(output)[:, 0].float().cpu().tolist()
        if "labels" not in batch:
            return list(rewards)
        half = len(rewards) // 2
        return list(zip(rewards[:half], rewards[half:], strict=True))

    def decode(self, outputs: Sequence[Any], encoded: Encoded) -> Scored:
        """Margins between the rewards."""
        import numpy as np

        rewards = np.array(outputs, np.float64).reshape(-1, 2)
        margin = rewards[:, 0] - rewards[:, 1]
        return Scored(
            objects([f"rewards {better:.3f} and {worse:.3f}" for better, worse in rewards]),
            objects([" | ".join(self.exchange(row).answers) for row in encoded.rows]),
            np.logaddexp(0, -margin),
            margins=np.stack([margin, np.full(len(margin), np.nan)], axis=1),
        )

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per row: of both answers, or of the one that an application gives."""
        if COMPLETION not in rows.column_names:
            return super().encode(rows, tokenizer, max_length)
        form = self.form or "text"
        writer = Writer.of(tokenizer, form, self.chat_template)

        def features(row: Mapping[str, Any], index: int) -> dict[str, Any]:
            prompt, (answer,) = writer.exchange(exchange_of(row, (COMPLETION,), form=form), max_length)
            ids = prompt + answer
            return {"input_ids": ids, "attention_mask": [1] * len(ids), ROW: index}

        return rows.map(features, with_indices=True, remove_columns=rows.column_names, desc="tokenizing")

    def rows(self, inputs: Sequence[Any]) -> Dataset:
        """Mappings with `prompt` and `completion`, pairs of both, or lists of turns; see `Task.rows`."""
        from datasets import Dataset

        if isinstance(inputs, (str, Mapping)):
            raise DataError(f"the inputs are {inputs!r}; give a list of inputs, even for one")
        found = []
        for position, value in enumerate(inputs):
            try:
                row = _answered(value)
                exchange_of(row, (COMPLETION,), form=self.form or "text")
            except ConversationError as problem:
                raise DataError(f"input {position}: {problem}") from problem
            found.append(row)
        return Dataset.from_list(found)

    def shown(self, row: Mapping[str, Any]) -> str:
        """The prompt with its better answer."""
        return PART_SEPARATOR.join((super().shown(row), self.exchange(row).answers[0]))

    def input_of(self, shown: str) -> Any:
        """A prompt with an answer, as texts."""
        prompt, _, answer = shown.partition(PART_SEPARATOR)
        return {PROMPT: prompt, COMPLETION: answer or prompt}

    def answers(self, outputs: Sequence[Any], encoded: Encoded) -> list[dict[str, Any]]:
        """reward."""
        return [{"reward": reward} for reward in outputs]


def _answered(value: Any) -> dict[str, Any]:
    """A prompt with its answer, in any of the forms."""
    if isinstance(value, Mapping) and PROMPT in value and COMPLETION in value:
        return {PROMPT: value[PROMPT], COMPLETION: value[COMPLETION]}
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(part, str) for part in value):
        return {PROMPT: value[0], COMPLETION: value[1]}
    if isinstance(value, (list, tuple)) and len(value) > 1:
        turns = turns_of(value)
        return {PROMPT: turns[:-1], COMPLETION: turns[-1:]}
    raise ConversationError(
        f"{value!r} is no answer with its prompt; give a mapping with {PROMPT!r} and {COMPLETION!r}, a pair of texts, "
        "or a list of turns"
    )
