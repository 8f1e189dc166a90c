"""Group relative policy optimization: learning from the rewards of the model's own answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from peftkit.errors import DataError
from peftkit.labels import Targets
from peftkit.registry import From
from peftkit.rewards import Reward, rewards
from peftkit.tasks import ROW, Collator, Encoded, Engine, Scored, tasks
from peftkit.tasks.conversations import ConversationError
from peftkit.tasks.exchanges import PROMPT, SYSTEM, Exchange, Writer, asked
from peftkit.tasks.generation import Generated, objects
from peftkit.tasks.preference import PreferenceTask

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANSWER = "answer"
NamedReward = Annotated[Reward, From(rewards)]


@tasks.register("grpo")
class GroupRelative(PreferenceTask):
    """Answer every prompt several times, and make those answers likelier that earn more than their group.

    Shao et al. 2024, arXiv:2402.03300. Rows have `prompt`, as text or turns, and for some rewards `answer`.
    """

    text_columns: ClassVar[tuple[str, ...]] = (PROMPT,)
    context_columns: ClassVar[tuple[str, ...]] = (SYSTEM, ANSWER)
    answer_columns: ClassVar[tuple[str, ...]] = ()
    generates: ClassVar[bool] = True

    rewards: tuple[NamedReward, ...] = Field(min_length=1)
    """What answers earn; several are summed up by their weights."""
    group_size: int = Field(8, ge=2)
    """Answers to each prompt; training.batch_size counts answers, and all of a step must be whole groups."""
    loss_type: Literal["grpo", "dr_grpo", "bnpo", "dapo"] = "dapo"
    """How the losses of tokens are averaged, by its name in TRL: grpo per answer first, dapo over all tokens."""
    clip: float = Field(0.2, gt=0, lt=1)
    """How far a step may move the odds of a token; epsilon in the paper."""
    exploration_temperature: float = Field(1.0, gt=0)
    """Of the answers that are learnt from; `temperature` is that of the answers that are scored."""
    disable_dropout: bool = False
    """Train without the dropout of model and method."""

    @property
    def targets(self) -> Targets:
        """Rewards."""
        return "rewards"

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """What the answers earn."""
        return ("mean_reward",)

    @property
    def needs_base(self) -> bool:
        """No: without a penalty on the divergence from the base."""
        return False

    @property
    def draws_per_row(self) -> int:
        """Once for each answer."""
        return self.group_size

    @property
    def engine(self) -> Engine:
        """TRL's GRPOTrainer."""
        options = {
            "num_generations": self.group_size,
            "num_generations_eval": 1,
            "max_completion_length": self.max_new_tokens,
            "temperature": self.exploration_temperature,
            "loss_type": self.loss_type,
            "epsilon": self.clip,
            "beta": 0.0,
            "reward_weights": [reward.weight for reward in self.rewards],
            "disable_dropout": self.disable_dropout,
        }
        return Engine("GRPOTrainer", "GRPOConfig", options, makes_answers=True)

    def training_problem(self, *, batch_size: int, accumulation_steps: int, batching: str) -> tuple[str, str] | None:
        """See `Task.training_problem`."""
        answers = batch_size * accumulation_steps
        if answers % self.group_size:
            return "batch_size", (
                f"a step has {answers} answers (batch_size * accumulation_steps), which are no whole groups of "
                f"task.group_size {self.group_size}; choose a multiple of it"
            )
        if batching != "random":
            return "batching", "grpo keeps the answers to a prompt together, so that rows cannot be grouped by length"
        return None

    def reward_functions(self, tokenizer: PreTrainedTokenizerBase) -> list[Callable[..., list[float]]]:
        """The rewards as TRL calls them, with texts as they are scored."""

        def function(reward: Reward) -> Callable[..., list[float]]:
            def earned(completions: list[str], **columns: list[Any]) -> list[float]:
                answers = columns.get(ANSWER) or [None] * len(completions)
                return [reward.of(self.cut(text), answer) for text, answer in zip(completions, answers, strict=True)]

            earned.__name__ = reward.name
            return earned

        return [function(reward) for reward in self.rewards]

    def resolved(self, splits: DatasetDict) -> Self:
        """See `Task.resolved`; there must be answers where a reward needs them."""
        for split, rows in splits.items():
            needing = next((reward.name for reward in self.rewards if reward.needs_answer), None)
            if needing is not None and ANSWER not in rows.column_names:
                raise DataError(
                    f"split {split!r} has no column {ANSWER!r}, which the reward {needing!r} compares with; map it in "
                    f"the recipe with  data.columns: {{{ANSWER}: ...}}, or choose other rewards"
                )
        return super().resolved(splits)

    def row_problems(self, rows: Dataset) -> dict[int, str]:
        """Prompts that cannot be answered, and answers that are missing."""
        problems = {}
        needed = any(reward.needs_answer for reward in self.rewards)
        for place, row in enumerate(rows):
            try:
                self.exchange(row)
            except ConversationError as found:
                problems[place] = str(found)
            if needed and not str(row[ANSWER] or "").strip():
                problems[place] = f"{ANSWER} is empty"
        return problems

    def exchange(self, row: Mapping[str, Any]) -> Exchange:
        """The prompt alone."""
        return Exchange(asked(row[PROMPT], form=self.form or "text", system=row.get(SYSTEM)), ())

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per row: the prompt, also under the name that TRL gives it, and the answer."""
        writer = Writer.of(tokenizer, self.form or "text", self.chat_template)

        def features(row: Mapping[str, Any], index: int) -> dict[str, Any]:
            prompt = writer.prompt(self.exchange(row).prompt)[-max_length:]
            kept = {ANSWER: str(row[ANSWER])} if row.get(ANSWER) is not None else {}
            return {"input_ids": prompt, "attention_mask": [1] * len(prompt), PROMPT: prompt, ROW: index, **kept}

        return rows.map(features, with_indices=True, remove_columns=rows.column_names, desc="tokenizing")

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Of prompts; TRL makes its own batches while it trains."""
        collate = super().collator(tokenizer)
        kept = ("input_ids", "attention_mask", ROW)
        return lambda features: collate([{name: one[name] for name in kept if name in one} for one in features])

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """Prompts; TRL counts for itself."""
        import torch

        return torch.tensor(len(batch["input_ids"]))

    def read(
        self, model: PreTrainedModel, batch: Mapping[str, Any], output: Any, *, generate: bool = True
    ) -> list[Generated]:
        """A generated answer to each prompt."""
        return super().read(model, batch, output, generate=generate)

    def references(self, encoded: Encoded) -> np.ndarray:
        """The right answers, each as a list of one text.

        Raises:
            DataError: the rows have none.
        """
        if ANSWER not in encoded.rows.column_names:
            raise DataError(f"the rows have no column {ANSWER!r} to compare with; score them by mean_reward alone")
        return objects([[str(answer)] for answer in encoded.rows[ANSWER]])

    def decode(self, outputs: Sequence[Any], encoded: Encoded) -> Scored:
        """Generated texts and what they earn."""
        import numpy as np

        texts = self.texts(outputs, encoded.tokenizer)
        there = ANSWER in encoded.rows.column_names
        answers = list(encoded.rows[ANSWER]) if there else [None] * len(texts)
        earned = np.array(
            [
                sum(reward.weight * reward.of(text, None if answer is None else str(answer)) for reward in self.rewards)
                for text, answer in zip(texts, answers, strict=True)
            ],
            np.float64,
        )
        references = self.references(encoded) if there else objects([[""]] * len(texts))
        return Scored(objects(texts), references, -earned, rewards=earned)
