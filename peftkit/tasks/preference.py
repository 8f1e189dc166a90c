"""What tasks have in common that learn which answers are preferred, and answer prompts themselves afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftkit.errors import CapabilityError, DataError
from peftkit.labels import Targets
from peftkit.tasks import ROW, Encoded, Task
from peftkit.tasks.columns import check_columns
from peftkit.tasks.conversations import ConversationError
from peftkit.tasks.exchanges import PROMPT, SYSTEM, Exchange, Form, Writer, asked, exchange_of, form_of, shown
from peftkit.tasks.generation import GenerationTask, token_likelihoods

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Likelihood = tuple[float, float, float]
"""Summed negative log-likelihood of an answer in nats, its tokens, and those that are the model's first choice."""


class ExchangeTask(Task):
    """Prompts with answers; see `exchanges` for the forms of rows."""

    context_columns: ClassVar[tuple[str, ...]] = (SYSTEM,)
    answer_columns: ClassVar[tuple[str, ...]]
    """Columns of answers, the best first."""

    form: Form | None = None
    """text: answers follow their prompts directly; chat: both stand in the chat template; none: chat where the rows
    have turns instead of texts."""
    chat_template: str | None = None
    """Jinja template of a conversation; none: that of the tokenizer."""
    disable_dropout: bool = True
    """Train without the dropout of model and method, which would let the tuned model differ from the base by chance."""

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Other programs that load the run write conversations by the same template."""
        tokenizer.chat_template = self.chat_template or tokenizer.chat_template

    @property
    def targets(self) -> Targets:
        """Its own: what is learnt from is a comparison."""
        return "own"

    @property
    def default_loss(self) -> str:
        """Its own."""
        return "own"

    def resolved(self, splits: DatasetDict) -> Self:
        """With the form that the rows have; see `Task.resolved`."""
        check_columns(splits, self._needed_columns())
        first = next(iter(splits.values()))
        if self.form is not None or not len(first):
            return self
        return self.model_copy(update={"form": form_of(first[0], self.answer_columns)})

    def _needed_columns(self) -> tuple[str, ...]:
        return (PROMPT, *self.answer_columns)

    def row_problems(self, rows: Dataset) -> dict[int, str]:
        """What cannot be read, and what `exchange_problem` says of the rest."""
        problems = {}
        for place, row in enumerate(rows):
            try:
                problem = self.exchange_problem(self.exchange(row))
            except ConversationError as found:
                problem = str(found)
            if problem is not None:
                problems[place] = problem
        return problems

    def exchange(self, row: Mapping[str, Any]) -> Exchange:
        """The prompt of a row and its answers; see `exchanges.exchange_of`."""
        return exchange_of(row, self.answer_columns, form=self.form or "text")

    def exchange_problem(self, exchange: Exchange) -> str | None:
        """Why there is nothing to learn from a row that can be read, or None."""
        return None

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per row: of prompt and answers, or of the prompt alone where an application asks."""
        writer = Writer.of(tokenizer, self.form or "text", self.chat_template)
        answered = self.answer_columns[0] in rows.column_names

        def features(row: Mapping[str, Any], index: int) -> dict[str, Any]:
            try:
                if answered:
                    prompt, answers = writer.exchange(self.exchange(row), max_length)
                    return {**self.feature(prompt, answers, row), ROW: index}
                prompt = writer.prompt(asked(row[PROMPT], form=self.form or "text"))[-max_length:]
                return {"input_ids": prompt, "attention_mask": [1] * len(prompt), ROW: index}
            except ConversationError as problem:
                raise DataError(f"row {index}: {problem}") from problem

        return rows.map(features, with_indices=True, remove_columns=rows.column_names, desc="tokenizing")

    def feature(self, prompt: list[int], answers: list[list[int]], row: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept of a row with answers; `labels` are -100 at the prompt."""
        raise NotImplementedError

    def items(self, batch: Mapping[str, Any]) -> Tensor:
        """How many rows there are."""
        import torch

        return torch.tensor(len(batch["labels"]) // len(self.answer_columns))

    def references(self, encoded: Encoded) -> np.ndarray:
        """None to compare with.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"the task {self.name!r} compares answers with each other; score it by {', '.join(self.default_metrics)} "
            "or perplexity, and remove other metrics"
        )

    def shown(self, row: Mapping[str, Any]) -> str:
        """The prompt."""
        return shown(self.exchange(row).prompt)

    def input_of(self, shown: str) -> Any:
        """The prompt as one text."""
        return shown


class PreferenceTask(ExchangeTask, GenerationTask):
    """Prompts with answers that are better or worse; a prompt alone is answered."""

    generates: ClassVar[bool] = False

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """How often the better answer is rewarded more, by how much, and how often its lead has grown."""
        return ("reward_accuracy", "reward_margin", "win_rate")

    @property
    def needs_base(self) -> bool:
        """Yes: it is compared with."""
        return True

    def suited(self, config: PretrainedConfig) -> Self:
        """For decoders; see `Task.suited`."""
        if config.is_encoder_decoder:
            raise CapabilityError(
                f"{self.name} is for decoders, and the base model ({config.model_type}) is an encoder-decoder; choose "
                "a decoder such as HuggingFaceTB/SmolLM2-135M-Instruct"
            )
        return super().suited(config)

    def aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of a token predict the one behind it."""
        return logits[:, :-1], labels[:, 1:]

    def likelihoods(self, output: Any, labels: Tensor) -> list[Likelihood]:
        """Of the labelled tokens of every sequence; row by row, as the logits of a batch in float32 are large."""
        logits, wanted = self.aligned(self.logits(output), labels)
        return [token_likelihoods(one[None], two[None])[0] for one, two in zip(logits, wanted, strict=True)]

    def rows(self, inputs: Sequence[Any]) -> Dataset:
        """Prompts: strings, lists of turns, or mappings with `prompt`; see `Task.rows`."""
        from datasets import Dataset

        if isinstance(inputs, (str, Mapping)):
            raise DataError(f"the inputs are {inputs!r}; give a list of inputs, even for one")
        prompts = []
        for position, value in enumerate(inputs):
            given = value[PROMPT] if isinstance(value, Mapping) and PROMPT in value else value
            try:
                prompts.append(asked(given, form=self.form or "text"))
            except ConversationError as problem:
                raise DataError(f"input {position}: {problem}") from problem
        return Dataset.from_dict({PROMPT: prompts})
