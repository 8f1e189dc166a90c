"""Conversations in the forms that data sets have them, brought into one: a list of messages with role and content."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from peftkit.errors import DataError

Message = dict[str, Any]

FORMS = {
    "messages": "a list of {role, content}",
    "conversations": "a list of {from, value}, as ShareGPT has them",
    "instruction": "one question, with  input  and  output  beside it, as Alpaca has them",
}
"""Columns that a form is recognised by, and what they hold."""
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""Other words for the roles of a chat template."""
_OPENAI = ("role", "content")
_SHAREGPT = ("from", "value")
ROLES = ("system", "user", "assistant", "tool")


class ConversationError(DataError):
    """What is wrong with a conversation, in words."""


def form_of(columns: Sequence[str]) -> str | None:
    """The form that columns are in, by its first column; None: none that is known."""
    return next((column for column in FORMS if column in columns), None)


def messages_of(row: Mapping[str, Any]) -> list[Message]:
    """The messages of a row in any of the forms, roles in the words of chat templates.

    Raises:
        ConversationError: a turn that cannot be read.
    """
    form = form_of([column for column, cell in row.items() if cell is not None])
    if form is None:
        raise ConversationError(f"there is none of the columns {', '.join(FORMS)}")
    if form == "instruction":
        return _alpaca(row)
    turns = row[form]
    if not isinstance(turns, (list, tuple)) or not turns:
        raise ConversationError(f"{form} is {_shown(turns)}, not a list of turns")
    keys = _OPENAI if form == "messages" else _SHAREGPT
    messages = [_message(place, turn, keys) for place, turn in enumerate(turns)]
    if row.get("system") and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": row["system"]})
    return messages


def turns_of(cell: Any) -> list[Message]:
    """The messages of one cell: a turn or a list of turns, each as {role, content} or {from, value}.

    Raises:
        ConversationError: a turn that cannot be read.
    """
    turns = [cell] if isinstance(cell, Mapping) else cell
    if not isinstance(turns, (list, tuple)):
        raise ConversationError(f"{_shown(cell)} is neither a text nor a list of turns")
    sharegpt = any(isinstance(turn, Mapping) and turn.get("from") is not None for turn in turns)
    return [_message(place, turn, _SHAREGPT if sharegpt else _OPENAI) for place, turn in enumerate(turns)]


def _alpaca(row: Mapping[str, Any]) -> list[Message]:
    for column in ("instruction", "output"):
        if column in row and not isinstance(row[column], str):
            raise ConversationError(f"{column} is {_shown(row[column])}, not a text")
    asked = "\n\n".join(row[name] for name in ("instruction", "input") if row.get(name))
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for question, answer in row.get("history") or ():
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": asked})
    if row.get("output") is not None:
        messages.append({"role": "assistant", "content": row["output"]})
    return messages


def _message(place: int, turn: Any, keys: tuple[str, str]) -> Message:
    role_key, text_key = keys
    if not isinstance(turn, Mapping) or role_key not in turn:
        raise ConversationError(f"turn {place} is {_shown(turn)}, not a mapping with {role_key!r} and {text_key!r}")
    role = _ROLES.get(turn[role_key], turn[role_key])
    if role not in ROLES:
        raise ConversationError(f"turn {place} has the role {turn[role_key]!r}; known are {', '.join(ROLES)}")
    # Readers of files give every turn all keys that any has.
    rest = {key: value for key, value in turn.items() if key not in keys and value is not None}
    content = turn.get(text_key)
    if content is not None and not isinstance(content, str):
        raise ConversationError(f"turn {place} ({role}) holds {_shown(content)}, not a text")
    return {"role": role, "content": content or "", **rest}


def problem_of(messages: Sequence[Message], *, to_learn: bool) -> str | None:
    """What is wrong with the order of turns, or None.

    Args:
        to_learn: whether the last turn must be the assistant's, rather than anybody else's.
    """
    if not messages:
        return "there are no turns"
    found = next((problem for place in range(len(messages)) if (problem := _turn_problem(messages, place))), None)
    if found is not None:
        return found
    last = messages[-1]["role"]
    if to_learn and last != "assistant":
        return f"the last turn is of the {last}, so that there is no answer to learn; remove it"
    if not to_learn and last == "assistant":
        return "the last turn is of the assistant, so that there is nothing to answer"
    if last == "system":
        return "there is nothing but a system prompt"
    return None


def _turn_problem(messages: Sequence[Message], place: int) -> str | None:
    message = messages[place]
    role, before = message["role"], messages[place - 1]["role"] if place else None
    if role == "system" and place:
        return f"turn {place} is a system prompt, which may only stand first"
    if role == before and role in ("user", "assistant"):
        return f"turns {place - 1} and {place} are both of the {role}; join them"
    if role == "assistant" and before in (None, "system"):
        return f"turn {place} is of the assistant, which nobody has asked anything yet"
    if role == "tool" and before not in ("assistant", "tool"):
        return f"turn {place} is of a tool, which the assistant has not called"
    if not str(message["content"]).strip() and not message.get("tool_calls"):
        return f"turn {place} ({role}) is empty"
    return None


def tools_of(row: Mapping[str, Any]) -> list[Any] | None:
    """The tools that a row offers, as chat templates take them.

    Raises:
        ConversationError: they are text that is not JSON.
    """
    tools = row.get("tools")
    if not tools:
        return None
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as problem:
            raise ConversationError(f"tools is {_shown(tools)}, which is no JSON ({problem})") from problem
    if not isinstance(tools, list):
        raise ConversationError(f"tools is {_shown(tools)}, not a list")
    return tools or None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
