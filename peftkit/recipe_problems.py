"""Validation problems of a recipe in words: dotted key, line, what is wrong, what was probably meant."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from peftkit.registry import Component, From, closest
from peftkit.yaml_source import KeyPath, YamlSource

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "set": "a list",
    "dict": "a mapping",
    "mapping": "a mapping",
    "model": "a mapping of keys",
    "finite_number": "a finite number",
}
"""What a field wants, by the start of pydantic's error type (int_type, int_parsing, int_from_float, ...)."""

_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


@dataclass(frozen=True)
class _Found:
    path: KeyPath
    error: ErrorDetails


def describe_problems(
    problem: ValidationError | None,
    source: YamlSource,
    *,
    root: type[BaseModel],
    further: Iterable[tuple[int, str]] = (),
) -> str:
    """All problems of a recipe, one line each, in the order of the file.

    Args:
        further: problems that were found elsewhere, each with the line that decides its place.
    """
    lines = [*problem_lines(problem, source, root=root), *further]
    found = [text for _, text in sorted(lines, key=lambda line: line[0])]
    count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
    return "\n".join([f"{source.origin} has {count}:", *(f"  {text}" for text in found)])


def problem_lines(
    problem: ValidationError | None, source: YamlSource, *, root: type[BaseModel]
) -> list[tuple[int, str]]:
    """Every problem in words, keys that stand twice included, with its line; 0 and the largest number for none."""
    return [*(_validation_lines(problem, source, root=root) if problem else ()), *_repetition_lines(source)]


def _repetition_lines(source: YamlSource) -> Iterator[tuple[int, str]]:
    for repeated in source.repeated:
        yield (
            repeated.line,
            f"{'.'.join(repeated.path)} (line {repeated.line}): stands twice, first on line {repeated.first_line}; "
            "keep one",
        )


def _validation_lines(
    problem: ValidationError, source: YamlSource, *, root: type[BaseModel]
) -> Iterator[tuple[int, str]]:
    found = [_Found(_real_path(error, source.value), error) for error in problem.errors()]
    paths = list(dict.fromkeys(item.path for item in found))
    for path in paths:
        # Of a union pydantic reports every branch; the one that went further down is the one that was meant.
        if any(len(other) > len(path) and other[: len(path)] == path for other in paths if path):
            continue
        place = source.place(path)
        where = f"line {place}" if isinstance(place, int) else place
        message = _message([item.error for item in found if item.path == path], path, value=source.value, root=root)
        dotted = ".".join(map(str, path)) or "recipe"
        order = place if isinstance(place, int) else 0 if place is None else sys.maxsize
        yield order, f"{dotted} ({where}): {message}" if where else f"{dotted}: {message}"


def _real_path(error: ErrorDetails, value: Any) -> KeyPath:
    """Where the error is, without the labels that pydantic adds for unions, which are no keys of the file."""
    path: list[int | str] = []
    for position, part in enumerate(error["loc"]):
        last = position == len(error["loc"]) - 1
        if isinstance(value, Mapping) and (part in value or (last and part != "[key]")):
            path.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            path.append(part)
            value = value[part]
        elif last and error["type"] == "missing":
            path.append(part)  # of a component in short form, `data: wheel`, which has no keys in the file
    return tuple(path)


def _message(errors: Sequence[ErrorDetails], path: KeyPath, *, value: Any, root: type[BaseModel]) -> str:
    kind = errors[0]["type"]
    if kind in ("extra_forbidden", "invalid_key"):
        return _unknown_key(path, value=value, root=root)
    if kind == "missing":
        return _missing_key(path, value=value, root=root)
    expected = list(dict.fromkeys(phrase for error in errors for phrase in _expected(error)))
    own_words = list(dict.fromkeys(_own_words(error) for error in errors if not _expected(error)))
    if not expected:
        return "; or ".join(own_words)
    given = errors[0]["input"]
    rejected = "but it is empty" if given is None else f"not {_shown(given)}"
    wanted = f"{', '.join(expected[:-1])} or {expected[-1]}" if len(expected) > 1 else expected[0]
    return "; ".join([f"must be {wanted}, {rejected}{_hint(given, errors)}", *own_words])


def _expected(error: ErrorDetails) -> list[str]:
    """What was wanted, each an end of "must be ..."; nothing if the error has words of its own."""
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context[key]
        return [f"{words} {int(bound) if bound == int(bound) else bound}"]
    if kind in ("literal_error", "enum"):
        return [repr(word) for word in _quoted(error)]
    if kind == "string_too_short":
        return [f"text of at least {context['min_length']} character(s)"]
    if kind == "string_pattern_mismatch":
        return [f"text that matches {context['pattern']}"]
    if kind in ("value_error", "assertion_error"):
        return []
    start = kind if kind in _EXPECTED else kind.partition("_")[0]
    if start in _EXPECTED:
        return [_EXPECTED[start]]
    return [error["msg"].removeprefix("Input should be ")] if error["msg"].startswith("Input should be ") else []


def _own_words(error: ErrorDetails) -> str:
    if error["type"] in ("value_error", "assertion_error"):
        return str(error["ctx"]["error"])
    return error["msg"]


def _hint(given: Any, errors: Sequence[ErrorDetails]) -> str:
    kinds = {error["type"] for error in errors}
    if isinstance(given, bool) and kinds & {"string_type", "literal_error"}:
        return "; YAML reads yes, no, on and off as true and false: put the word in quotes"
    if "string_type" in kinds and isinstance(given, (int, float)):
        return f'; put it in quotes: "{given}"'
    if isinstance(given, str) and kinds & {"tuple_type", "list_type"}:
        return f"; write it as a list: [{given}]"
    legal = [word for error in errors if error["type"] == "literal_error" for word in _quoted(error)]
    close = closest(str(given), legal) if legal else None
    return f"; did you mean {close!r}?" if close else ""


def _quoted(error: ErrorDetails) -> list[str]:
    return [word.strip("' ") for word in str(error["ctx"]["expected"]).replace(" or ", ", ").split(",")]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown_key(path: KeyPath, *, value: Any, root: type[BaseModel]) -> str:
    key = str(path[-1])
    known = _keys_at(root, path[:-1], value)
    close = closest(key, known)
    elsewhere = None if close else _elsewhere(key, path, value=value, root=root)
    hint = close or elsewhere
    return f"unknown key; did you mean {hint!r}?" if hint else f"unknown key (known here: {', '.join(known)})"


def _elsewhere(key: str, path: KeyPath, *, value: Any, root: type[BaseModel]) -> str | None:
    """The dotted key of another part of the recipe that is called `key`."""
    for name, field in root.model_fields.items():
        part = value.get(name)
        model = _model_in((field.annotation, *field.metadata), part)
        if path[:-1] != (name,) and model is not None and key in model.model_fields:
            return f"{name}.{key}"
    return None


def _missing_key(path: KeyPath, *, value: Any, root: type[BaseModel]) -> str:
    model = _model_at(root, path[:-1], value)
    field = model.model_fields.get(str(path[-1])) if model else None
    registry = next((hint.registry for hint in _flattened(_hints(field)) if isinstance(hint, From)), None)
    if registry is not None:
        return f"is required but absent; name a {registry.noun}: {', '.join(registry.names())}"
    return f"is required but absent{f' ({field.description})' if field and field.description else ''}"


def _keys_at(root: type[BaseModel], path: KeyPath, value: Any) -> list[str]:
    """The keys that are legal at `path` of a recipe with the given values."""
    model = _model_at(root, path, value)
    if model is None:
        return []
    return [*(["name"] if issubclass(model, Component) else []), *model.model_fields]


def _model_at(root: type[BaseModel], path: KeyPath, value: Any) -> type[BaseModel] | None:
    """The class that the value at `path` is validated against, or None if that cannot be told."""
    hints: tuple[Any, ...] = (root,)
    for part in path:
        if isinstance(part, str):
            model = _model_in(hints, value)
            hints = _hints(model.model_fields.get(part) if model else None)
        value = value[part]
    return _model_in(hints, value)


def _hints(field: FieldInfo | None) -> tuple[Any, ...]:
    return (field.annotation, *field.metadata) if field else ()


def _model_in(hints: Iterable[Any], value: Any) -> type[BaseModel] | None:
    """The class among type hints that `value` is validated against; for a component the one it names, if any does."""
    flat = list(_flattened(hints))
    registry = next((hint.registry for hint in flat if isinstance(hint, From)), None)
    if registry is not None:
        name = value.get("name") if isinstance(value, Mapping) else str(value).partition(":")[0]
        found: type[BaseModel] | None = registry.get(name) if name in registry.loaded_names() else None
        return found
    return next((hint for hint in flat if isinstance(hint, type) and issubclass(hint, BaseModel)), None)


def _flattened(hints: Iterable[Any]) -> Iterator[Any]:
    for hint in hints:
        yield hint
        yield from _flattened(get_args(hint))
