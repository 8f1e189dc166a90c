"""Validation problems of a recipe in words: dotted key, line, what is wrong, what was probably meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from peftkit.registry import Component, From
from peftkit.yaml_source import YamlSource


def describe_problems(problem: ValidationError, source: YamlSource, *, value: Any, root: type[BaseModel]) -> str:
    """All problems of a recipe, one line each, in the order of the file."""
    lines = {_describe(error, source, value=value, root=root): None for error in problem.errors()}
    found = sorted([*lines, *source.repeated], key=lambda text: _line_in(text))
    count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
    return "\n".join([f"{source.origin} has {count}:", *(f"  {text}" for text in found)])


def _line_in(text: str) -> int:
    digits = text.partition("(line ")[2].partition(")")[0]
    return int(digits) if digits.isdigit() else 0


def _describe(error: ErrorDetails, source: YamlSource, *, value: Any, root: type[BaseModel]) -> str:
    path = _real_path(error["loc"], value)
    dotted = ".".join(str(part) for part in path)
    line = next((source.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in source.lines), None)
    where = f"{dotted or 'recipe'} (line {line})" if line else f"{dotted or 'recipe'}"
    return f"{where}: {_message(error, path, value=value, root=root)}"


def _real_path(loc: tuple[int | str, ...], value: Any) -> tuple[int | str, ...]:
    """`loc` without the labels that pydantic adds for unions and tuples, which are no keys of the file."""
    path: list[int | str] = []
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(value, Mapping) and (part in value or last):
            path.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            path.append(part)
            value = value[part]
    return tuple(path)


def _message(error: ErrorDetails, path: tuple[int | str, ...], *, value: Any, root: type[BaseModel]) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        return _unknown_key(str(path[-1]), _keys_at(root, path[:-1], value))
    if kind == "missing":
        return "is required but absent"
    if kind == "literal_error":
        expected = str(error["ctx"]["expected"])
        return f"{error['input']!r} is not one of {expected}{_suggestion(error['input'], expected)}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, not {error['input']!r}"


def _unknown_key(key: str, known: list[str]) -> str:
    close = get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown key; {hint}(known here: {', '.join(known)})"


def _suggestion(given: Any, expected: str) -> str:
    words = [word.strip("' ") for word in expected.replace(" or ", ", ").split(",")]
    close = get_close_matches(str(given), words, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _keys_at(root: type[BaseModel], path: tuple[int | str, ...], value: Any) -> list[str]:
    """The keys that are legal at `path` of a recipe with the given values."""
    hints: tuple[Any, ...] = (root,)
    for part in path:
        if isinstance(part, str):
            field = _model_in(hints, value).model_fields[part]
            hints = (field.annotation, *field.metadata)
        value = value[part]
    model = _model_in(hints, value)
    return [*(["name"] if issubclass(model, Component) else []), *model.model_fields]


def _model_in(hints: tuple[Any, ...], value: Any) -> type[BaseModel]:
    """The class that `value` is validated against, given the type hints of its place."""
    flat = list(_flattened(hints))
    for hint in flat:
        if isinstance(hint, From):
            found: type[BaseModel] = hint.registry.get(value if isinstance(value, str) else value["name"])
            return found
    return next(hint for hint in flat if isinstance(hint, type) and issubclass(hint, BaseModel))


def _flattened(hints: tuple[Any, ...]) -> Iterator[Any]:
    for hint in hints:
        yield hint
        yield from _flattened(get_args(hint))
