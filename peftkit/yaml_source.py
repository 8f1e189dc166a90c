"""A YAML file as plain values that remember their lines, so that problems can be shown where they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peftkit.errors import RecipeError

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class YamlSource:
    """Parsed YAML.

    Args:
        origin: file name for messages.
        value: plain dicts, lists and scalars.
        lines: 1-based line of every key and list item, by path from the root.
        repeated: problems with keys that stand twice in one mapping, which YAML readers resolve silently.
    """

    origin: str
    value: dict[str, Any]
    lines: Mapping[Path_, int]
    repeated: tuple[str, ...] = ()


def read_yaml(path: Path) -> YamlSource:
    """Read a recipe file.

    Raises:
        RecipeError: the file is missing, not UTF-8, not YAML, or holds no mapping.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as problem:
        near = sorted(str(other) for other in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        listed = f" (in that folder: {', '.join(near[:8])})" if near else ""
        raise RecipeError(f"there is no recipe file '{path}'{listed}") from problem
    except IsADirectoryError as problem:
        raise RecipeError(f"'{path}' is a folder; name the recipe file in it") from problem
    except UnicodeDecodeError as problem:
        raise RecipeError(f"'{path}' is not UTF-8 text (byte {problem.start}); save it as UTF-8") from problem
    return parse_yaml(text, origin=str(path))


def parse_yaml(text: str, *, origin: str) -> YamlSource:
    """Parse YAML text that holds one mapping.

    Raises:
        RecipeError: the text is not YAML, or holds no mapping.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1 if problem.problem_mark else "?"
        raise RecipeError(f"{origin}:{line}: not valid YAML: {problem.problem or problem.context}") from problem
    except (yaml.YAMLError, ValueError) as problem:
        raise RecipeError(f"{origin}: not valid YAML: {problem}") from problem
    if not isinstance(value, dict):
        found = "it is empty" if value is None else f"it holds a {type(value).__name__}"
        raise RecipeError(f"{origin}: a recipe is a mapping of keys to values, but {found}")
    lines: dict[Path_, int] = {}
    repeated: list[str] = []
    if node is not None:
        _collect(node, (), lines=lines, repeated=repeated)
    return YamlSource(origin, value, lines, tuple(repeated))


def overlay(value: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A copy of `value` with settings `a.b=c` applied in order; `c` is read as YAML, list items are addressed by index.

    A name in short form (`method: lora`) becomes a mapping when one of its options is set (`method.rank=4`).

    Raises:
        RecipeError: a setting without '=', with text that is not YAML, or with a path that leads through a value.
    """
    result: dict[str, Any] = _copied(value)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not re.fullmatch(r"[^.\s]+(\.[^.\s]+)*", key):
            raise RecipeError(f"--set {setting}: write it as  key.subkey=value")
        try:
            new = yaml.safe_load(text)
        except yaml.YAMLError as problem:
            raise RecipeError(
                f"--set {setting}: the value {text!r} is not valid YAML; put quotes around it"
            ) from problem
        _assign(result, key.split("."), new=new, setting=setting)
    return result


def _assign(node: Any, keys: list[str], *, new: Any, setting: str) -> None:
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise RecipeError(
                    f"--set {setting}: {key!r} is no index of a list with {len(node)} items (0 is the first)"
                )
            slot: Any = int(key)
        elif isinstance(node, dict):
            slot = key
        else:
            raise RecipeError(
                f"--set {setting}: {'.'.join(keys[:position])} is the value {node!r} and has no key {key!r}"
            )
        if last:
            node[slot] = new
            return
        below = node.get(slot) if isinstance(node, dict) else node[slot]
        if below is None:
            below = node[slot] = {}
        elif isinstance(below, str):
            below = node[slot] = {_SHORT_FORMS.get(key, "name"): below}
        node = below


# `model: some/id` is short for `model: {id: some/id}`; every other short form names a component.
_SHORT_FORMS = {"model": "id"}


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value


def _collect(node: yaml.Node, path: Path_, *, lines: dict[Path_, int], repeated: list[str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            here = (*path, key)
            if here in lines:
                repeated.append(
                    f"{'.'.join(map(str, here))} (line {line}): stands twice, first on line {lines[here]}; keep one"
                )
            lines[here] = line
            _collect(value_node, here, lines=lines, repeated=repeated)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            _collect(item, (*path, index), lines=lines, repeated=repeated)
