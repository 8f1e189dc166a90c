"""Conversations as the text that a model reads, by the template that it was made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.errors import CapabilityError
from peftkit.tasks.conversations import ConversationError, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with the tokenizer that fills it in."""

    tokenizer: Any
    jinja: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, given: str | None) -> ChatTemplate:
        """The template that a recipe gives, or else the tokenizer's own.

        Raises:
            CapabilityError: there is neither.
        """
        template = given or tokenizer.chat_template
        if not isinstance(template, str):
            raise CapabilityError(
                "the tokenizer has no chat template; use a model that was made for conversations, or give one with  "
                "task.chat_template"
            )
        return cls(tokenizer, template)

    def write(self, messages: Sequence[Message], tools: list[Any] | None, *, cue: bool = False) -> str:
        """The turns as text, with the assistant's cue behind them where asked for."""
        from jinja2 import TemplateError

        options = {"tools": tools, "chat_template": self.jinja, "add_generation_prompt": cue}
        try:
            text: str = self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
        except (TemplateError, TypeError) as problem:  # TypeError: an expression of the template on such turns
            raise ConversationError(
                f"the chat template refuses the turns up to turn {len(messages) - 1}: {problem}; change them, or give "
                "another template with  task.chat_template"
            ) from problem
        return text

    def check_tools(self, messages: Sequence[Message], tools: list[Any] | None) -> None:
        """Make sure that tools and calls of them are written: most templates pass over what they do not know."""
        silent = [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]
        for name, is_there, without in (
            ("tools", tools, (messages, None)),
            ("tool_calls", silent != list(messages), (silent, tools)),
        ):
            if is_there and self._outcome(messages, tools) == self._outcome(*without):
                raise ConversationError(
                    f"the chat template writes nothing of {name}; give one that does with  task.chat_template, "
                    f"or rows without {name}"
                )

    def _outcome(self, messages: Sequence[Message], tools: list[Any] | None) -> str:
        """The text, or why there is none."""
        try:
            return self.write(messages, tools)
        except ConversationError as problem:
            return str(problem)
