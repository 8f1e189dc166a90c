"""A prompt and answers to it, in the forms that data sets have them, and as the tokens that a model reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from peftkit.tasks.chat_template import ChatTemplate
from peftkit.tasks.conversations import ConversationError, Message, problem_of, turns_of
from peftkit.tasks.generation import fitted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["text", "chat"]
Prompt = str | list[Message]

PROMPT = "prompt"
SYSTEM = "system"


@dataclass(frozen=True)
class Exchange:
    """One prompt and its answers.

    Args:
        prompt: a text, or the turns before the answer.
        answers: texts that may follow it.
    """

    prompt: Prompt
    answers: tuple[str, ...]


def form_of(row: Mapping[str, Any], columns: Sequence[str]) -> Form:
    """chat where any of the columns holds turns."""
    cells = [row.get(column) for column in (PROMPT, *columns)]
    return "chat" if any(isinstance(cell, (Mapping, list, tuple)) for cell in cells) else "text"


def exchange_of(row: Mapping[str, Any], columns: Sequence[str], *, form: Form) -> Exchange:
    """The prompt of a row, and the answers in `columns`; without a prompt it is what all answers begin with.

    Raises:
        ConversationError: what cannot be read, or does not follow on each other.
    """
    cells = [row[column] for column in columns]
    given = row.get(PROMPT)
    if form == "text":
        if odd := next((cell for cell in (given, *cells) if cell is not None and not isinstance(cell, str)), None):
            raise ConversationError(f"this row holds turns ({str(odd)[:40]}...), but the first row of all holds texts")
        exchange = _shared_text(cells) if given is None else Exchange(given, tuple(cells))
    else:
        exchange = _chat(given, cells, row.get(SYSTEM))
    for column, answer in zip(columns, exchange.answers, strict=True):
        if not answer.strip():
            raise ConversationError(f"{column} holds no answer")
    return exchange


def asked(cell: Any, *, form: Form, system: str | None = None) -> Prompt:
    """A prompt alone, as an application or a row without answers gives it.

    Raises:
        ConversationError: it cannot be read, or there is nothing to answer.
    """
    if form == "text":
        if not isinstance(cell, str):
            raise ConversationError(f"{cell!r} is no text, which the model was tuned on; give a string")
        return cell
    messages = [{"role": "user", "content": cell}] if isinstance(cell, str) else turns_of(cell)
    if system and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    if problem := problem_of(messages, to_learn=False):
        raise ConversationError(f"the prompt: {problem}")
    return messages


def _shared_text(texts: Sequence[str]) -> Exchange:
    shared = 0
    while shared < min(map(len, texts)) and len({text[shared] for text in texts}) == 1:
        shared += 1
    # Words stay whole, and the space before an answer is the answer's.
    whole = re.match(r"(?s)(.*\S)(?=\s)", texts[0][: shared + 1])
    prompt = whole.group(1) if whole else ""
    if not prompt:
        raise ConversationError("there is no prompt, and the answers have no beginning in common")
    return Exchange(prompt, tuple(text[len(prompt) :] for text in texts))


def _chat(given: Any, cells: Sequence[Any], system: str | None) -> Exchange:
    answers = [[{"role": "assistant", "content": cell}] if isinstance(cell, str) else turns_of(cell) for cell in cells]
    if given is None:
        shared = 0
        while shared < min(map(len, answers)) and all(turns[shared] == answers[0][shared] for turns in answers):
            shared += 1
        shared = min(shared, *(len(turns) - 1 for turns in answers))
        if shared < 1:
            raise ConversationError("there is no prompt, and the answers have no turns in common")
        given, answers = answers[0][:shared], [turns[shared:] for turns in answers]
    for turns in answers:
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            roles = ", ".join(turn["role"] for turn in turns) or "nobody"
            raise ConversationError(f"an answer has to be one turn of the assistant, not of {roles}")
    return Exchange(asked(given, form="chat", system=system), tuple(str(turns[0]["content"]) for turns in answers))


@dataclass(frozen=True)
class Writer:
    """Writes exchanges as tokens, the answers closed by the end token.

    Args:
        template: of conversations; None: prompts are texts, and answers follow them directly.
    """

    tokenizer: Any
    template: ChatTemplate | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, form: Form, chat_template: str | None) -> Writer:
        """For one form; see `ChatTemplate.of`."""
        return cls(tokenizer, ChatTemplate.of(tokenizer, chat_template) if form == "chat" else None)

    def prompt(self, prompt: Prompt) -> list[int]:
        """Tokens of a prompt, up to where the answer begins."""
        if self.template is None:
            ids: list[int] = self.tokenizer(prompt)["input_ids"]
            return ids[:-1] if len(ids) > 1 and ids[-1] == self._end else ids
        return self._tokens(self.template.write(_turns(prompt), None, cue=True))

    def answer(self, prompt: Prompt, answer: str) -> list[int]:
        """Tokens of an answer, up to its end token.

        Raises:
            ConversationError: the template writes the prompt otherwise once an answer follows.
        """
        end = self._end
        if self.template is None:
            return [*self._tokens(answer), end]
        before = self.template.write(_turns(prompt), None, cue=True)
        whole = self.template.write([*_turns(prompt), {"role": "assistant", "content": answer}], None)
        if not whole.startswith(before):
            raise ConversationError(
                "the chat template writes the prompt otherwise once an answer follows, so that training would see "
                "other text than answering; give a template that only adds, with  task.chat_template"
            )
        ids = self._tokens(whole[len(before) :])
        return ids[: ids.index(end) + 1] if end in ids else [*ids, end]

    def exchange(self, exchange: Exchange, max_length: int) -> tuple[list[int], list[list[int]]]:
        """Tokens of a prompt and of its answers, so that each answer fits behind the prompt.

        The prompt loses its beginning, the same for all answers; answers lose their ends, once the prompt is short.
        """
        prompt = self.prompt(exchange.prompt)
        answers = [self.answer(exchange.prompt, answer) for answer in exchange.answers]
        prompt, _ = fitted(prompt, max(answers, key=len), max_length)
        return prompt, [answer[: max_length - len(prompt)] for answer in answers]

    @property
    def _end(self) -> int:
        """The end token; of encoders the separator."""
        end = self.tokenizer.eos_token_id
        found: int = self.tokenizer.sep_token_id if end is None else end
        return found

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _turns(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def shown(prompt: Prompt) -> str:
    """A prompt in words, for reports."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
