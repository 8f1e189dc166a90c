"""Instruction tuning: conversations in the chat template of the model, learnt where the assistant speaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftkit.errors import CapabilityError, DataError
from peftkit.labels import IGNORED
from peftkit.results import PART_SEPARATOR
from peftkit.tasks import ROW, Encoded, tasks
from peftkit.tasks.chat_template import ChatTemplate
from peftkit.tasks.conversations import FORMS, ConversationError, Message, form_of, messages_of, problem_of, tools_of
from peftkit.tasks.generation import GenerationTask, fitted, last_stretch, objects

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@tasks.register("instruction_tuning")
class InstructionTuning(GenerationTask):
    """Conversations of one or more turns; the loss is that of the assistant's turns, the end token included.

    Rows have `messages` ({role, content}), `conversations` ({from, value}) or `instruction`, `input` and `output`; also
    `system` and `tools`. Scores are those of the last turn, generated from all turns before it.
    """

    text_columns: ClassVar[tuple[str, ...]] = tuple(FORMS)
    context_columns: ClassVar[tuple[str, ...]] = ("input", "system", "history", "tools")

    chat_template: str | None = None
    """Jinja template of a conversation; none: that of the tokenizer."""

    def prepare_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Other programs that load the run write conversations by the same template."""
        tokenizer.chat_template = self.chat_template or tokenizer.chat_template

    @property
    def default_metrics(self) -> tuple[str, ...]:
        """Perplexity of the assistant's turns, which needs no generation, and ROUGE of the generated last turn."""
        return ("perplexity", "token_accuracy", "rouge")

    def suited(self, config: PretrainedConfig) -> Self:
        """For decoders; see `Task.suited`."""
        if config.is_encoder_decoder:
            raise CapabilityError(
                f"instruction_tuning is for decoders, and the base model ({config.model_type}) is an encoder-decoder; "
                "use  task: text_generation"
            )
        return super().suited(config)

    def resolved(self, splits: DatasetDict) -> Self:
        """Itself, once the form is known; see `Task.resolved`."""
        for split, rows in splits.items():
            form = form_of(rows.column_names)
            if form is None or (form == "instruction" and "output" not in rows.column_names):
                listed = ", ".join(name for name in rows.column_names if not name.startswith("__"))
                forms = "; ".join(f"{column}: {words}" for column, words in FORMS.items())
                raise DataError(
                    f"split {split!r} has no conversations (it has: {listed}); map a column in the recipe with  "
                    f"data.columns  to one of  {forms}"
                )
        return self

    def row_problems(self, rows: Dataset) -> dict[int, str]:
        """Turns that cannot be read, or that are out of order."""
        problems = {}
        for place, row in enumerate(rows):
            try:
                problem = problem_of(messages_of(row), to_learn=True)
                tools_of(row)
            except ConversationError as found:
                problem = str(found)
            if problem is not None:
                problems[place] = problem
        return problems

    def encode(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """One feature per row; `labels` where a row ends with the assistant's turn, -100 at the turns of others."""
        template = ChatTemplate.of(tokenizer, self.chat_template)

        def features(row: Mapping[str, Any], index: int) -> dict[str, Any]:
            try:
                messages = messages_of(row)
                ids, labels = _tokens(messages, tools_of(row), template)
            except ConversationError as problem:
                raise DataError(f"row {index}: {problem}") from problem
            ids, labels = _cut(ids, labels, max_length)
            learnt = {"labels": labels} if messages[-1]["role"] == "assistant" else {}
            return {"input_ids": ids, "attention_mask": [1] * len(ids), ROW: index, **learnt}

        return rows.map(features, with_indices=True, remove_columns=rows.column_names, desc="tokenizing")

    def references(self, encoded: Encoded) -> np.ndarray:
        """The last turn of each conversation, as a list of one text."""
        return objects([[str(messages_of(row)[-1]["content"])] for row in encoded.rows])

    def rows(self, inputs: Sequence[Any]) -> Dataset:
        """A question, a list of messages, or a mapping with a conversation; see `Task.rows`."""
        from datasets import Dataset

        if isinstance(inputs, (str, Mapping)):
            raise DataError(f"the inputs are {inputs!r}; give a list of inputs, even for one")
        conversations = [self._asked(position, value) for position, value in enumerate(inputs)]
        tools = [value.get("tools") if isinstance(value, Mapping) else None for value in inputs]
        return Dataset.from_list(
            [{"messages": messages, "tools": offered} for messages, offered in zip(conversations, tools, strict=True)]
        )

    def _asked(self, position: int, value: Any) -> list[Message]:
        if isinstance(value, str):
            value = {"messages": [{"role": "user", "content": value}]}
        elif isinstance(value, (list, tuple)):
            value = {"messages": value}
        if not isinstance(value, Mapping):
            raise DataError(f"input {position} is {value!r}; give a question, or a list of messages")
        try:
            messages = messages_of(value)
            problem = problem_of(messages, to_learn=False)
        except ConversationError as found:
            problem = str(found)
        if problem is not None:
            raise DataError(f"input {position}: {problem}")
        return messages

    def shown(self, row: Mapping[str, Any]) -> str:
        """The turns before the last."""
        return PART_SEPARATOR.join(f"{message['role']}: {message['content']}" for message in messages_of(row)[:-1])

    def input_of(self, shown: str) -> Any:
        """The turns as one question."""
        return shown


def _tokens(
    messages: Sequence[Message], tools: list[Any] | None, template: ChatTemplate
) -> tuple[list[int], list[int]]:
    """Tokens of a conversation, and their labels; a question is followed by the assistant's cue."""
    end = template.tokenizer.eos_token_id
    ids: list[int] = []
    labels: list[int] = []
    for text, is_learnt in _stretches(messages, tools, template):
        tokens = template.tokenizer(text, add_special_tokens=False)["input_ids"]
        wanted = _up_to_end(tokens, end) if is_learnt else 0
        ids += tokens
        labels += tokens[:wanted] + [IGNORED] * (len(tokens) - wanted)
    template.check_tools(messages, tools)
    if messages[-1]["role"] == "assistant" and end not in ids[last_stretch(labels) :]:
        ids.append(end)
        labels.append(end)
    return ids, labels


def _stretches(
    messages: Sequence[Message], tools: list[Any] | None, template: ChatTemplate
) -> Iterator[tuple[str, bool]]:
    """The conversation as text in pieces, and whether the assistant speaks in them.

    Raises:
        ConversationError: the template writes earlier turns otherwise once later ones follow, so that no piece of the
            text is what the model would see when it answers.
    """
    done = ""
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            asked = template.write(messages[:place], tools, cue=True)
            for text, learnt in ((asked, False), (template.write(messages[: place + 1], tools), True)):
                if not text.startswith(done):
                    raise ConversationError(
                        f"the chat template changes earlier text once turn {place} follows ({done[-30:]!r} became "
                        f"{text[max(0, len(done) - 30) : len(done)]!r}), so that training would see other text than "
                        "answering; give a template that only adds, with  task.chat_template"
                    )
                yield text[len(done) :], learnt
                done = text
    if messages[-1]["role"] != "assistant":
        yield template.write(messages, tools, cue=True)[len(done) :], False


def _up_to_end(tokens: Sequence[int], end: int) -> int:
    """How many tokens of a turn are learnt: up to its end token, behind which templates put a line break."""
    return tokens.index(end) + 1 if end in tokens else len(tokens)


def _cut(ids: list[int], labels: list[int], max_length: int) -> tuple[list[int], list[int]]:
    """Within `max_length`: the beginning of the conversation goes, the last answer stays as long as it can."""
    start = last_stretch(labels)
    before, after = fitted(ids[:start], ids[start:], max_length)
    before_labels = labels[start - len(before) : start]
    return before + after, before_labels + labels[start : start + len(after)]
