"""A YAML file as plain values that remember their lines, so that problems can be shown where they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from peftkit.errors import RecipeError

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the root of a recipe to a value."""

_DEEPEST = 40
_MOST_VALUES = 20_000


@dataclass(frozen=True)
class Repetition:
    """A key that stands twice in one mapping, which YAML readers resolve silently."""

    path: tuple[str, ...]
    line: int
    first_line: int


@dataclass(frozen=True)
class YamlSource:
    """Parsed YAML.

    Args:
        origin: file name for messages.
        value: plain dicts, lists and scalars.
        lines: 1-based line of every key and list item, by path from the root, indices as text too.
        repeated: keys that stand twice in one mapping.
        settings: what was laid over the file: where each of it stands, such as `--set`, by path.
    """

    origin: str
    value: dict[str, Any]
    lines: Mapping[tuple[str, ...], int]
    repeated: tuple[Repetition, ...] = ()
    settings: Mapping[tuple[str, ...], str] = field(default_factory=dict)

    def with_settings(self, settings: Sequence[str]) -> YamlSource:
        """The same with `a.b=c` settings laid over it; see `overlay`."""
        places = {tuple(setting.partition("=")[0].split(".")): "--set" for setting in settings}
        return self._laid_over(overlay(self.value, settings), places)

    def with_values(self, values: Mapping[str, Any], *, places: Mapping[tuple[str, ...], str]) -> YamlSource:
        """The same with values laid over it that another file gives, by dotted key.

        Args:
            places: where each key, and what is below it, stands in that file, for messages; by path.

        Raises:
            RecipeError: a key that is no dotted key, or that leads through a value.
        """
        value = _copied(self.value)
        for key, new in values.items():
            path = tuple(key.split("."))
            where = places.get(path)
            origin = f"{key} ({where})" if where else key
            if not _DOTTED.fullmatch(key):
                raise RecipeError(f"{origin}: no key of a recipe; write it as  key.subkey  without spaces")
            _assign(value, list(path), new=_copied(new), origin=origin)
        return self._laid_over(value, places)

    def _laid_over(self, value: dict[str, Any], places: Mapping[tuple[str, ...], str]) -> YamlSource:
        """With `value`, of which what stands at or below the paths of `places` is no longer that of the file."""
        former = {
            path: place for path, place in self.settings.items() if not any(path[: len(new)] == new for new in places)
        }
        lines = {
            path: line
            for path, line in self.lines.items()
            if not any(path[: len(new)] == new and path != new for new in places)
        }
        return replace(self, value=value, lines=lines, settings=former | dict(places))

    def place(self, path: KeyPath) -> int | str | None:
        """Where the value at `path` was written: a line, a setting's place, or None; an absent key: its mapping."""
        texts = tuple(str(part) for part in path)
        for end in range(len(path), 0, -1):
            if texts[:end] in self.settings:
                return self.settings[texts[:end]]
            if texts[:end] in self.lines:
                return self.lines[texts[:end]]
        return None


_KEYS = {"recipe": "model: ..., task: ...", "suite": "recipe: ..., variants: ..."}


def read_yaml(path: Path, *, what: str = "recipe") -> YamlSource:
    """Read a recipe file, or one of another kind.

    Args:
        what: "recipe" or "suite", for messages.

    Raises:
        RecipeError: the file is missing, cannot be read, is not UTF-8, not YAML, or holds no mapping.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError as problem:
        near = sorted(str(other) for other in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        listed = f" (in that folder: {', '.join(near[:8])})" if near else ""
        raise RecipeError(f"there is no {what} file '{path}'{listed}") from problem
    except IsADirectoryError as problem:
        raise RecipeError(f"'{path}' is a folder; name the {what} file in it") from problem
    except UnicodeDecodeError as problem:
        raise RecipeError(f"'{path}' is not UTF-8 text (byte {problem.start}); save it as UTF-8") from problem
    except OSError as problem:
        raise RecipeError(f"cannot read the {what} '{path}': {problem.strerror}") from problem
    return parse_yaml(text, origin=str(path), what=what)


def parse_yaml(text: str, *, origin: str, what: str = "recipe") -> YamlSource:
    """Parse YAML text that holds one mapping.

    Args:
        what: "recipe" or "suite", for messages.

    Raises:
        RecipeError: the text is not YAML, or holds no mapping.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as problem:
        raise RecipeError(f"{origin}:{_syntax_problem(problem)}") from problem
    except RecursionError as problem:
        raise RecipeError(f"{origin}: not valid YAML: nested too deeply") from problem
    # Beside its own errors, PyYAML lets those of int() and datetime() through: 2024-13-01 is a bare ValueError.
    except (yaml.YAMLError, ValueError) as problem:
        raise RecipeError(f"{origin}: not valid YAML: {problem}") from problem
    if node is None or not isinstance(value, dict):
        found = "it is empty" if value is None else f"it holds a {type(value).__name__}"
        raise RecipeError(f"{origin}: a {what} is a mapping of keys to values ({_KEYS[what]}), but {found}")
    lines: dict[tuple[str, ...], int] = {}
    repeated: list[Repetition] = []
    try:
        _collect(node, (), lines=lines, repeated=repeated)
    except RecipeError as problem:
        raise RecipeError(f"{origin}: {problem}") from problem
    return YamlSource(origin, value, lines, tuple(repeated))


def _syntax_problem(problem: yaml.MarkedYAMLError) -> str:
    mark = problem.problem_mark or problem.context_mark
    reason = " ".join(part for part in (problem.context, problem.problem) if part)
    hint = "; YAML indents with spaces, not tabs" if "'\\t'" in reason else ""
    return f"{mark.line + 1 if mark else '?'}: not valid YAML: {reason}{hint}"


def overlay(value: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """A copy of `value` with settings `a.b=c` applied in order; `c` is read as YAML, list items are addressed by index.

    A name in short form (`method: lora`) becomes a mapping when one of its options is set (`method.rank=4`).

    Raises:
        RecipeError: a setting without '=', with text that is not YAML, or with a path that leads through a value.
    """
    result: dict[str, Any] = _copied(value)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not _DOTTED.fullmatch(key):
            raise RecipeError(f"--set {setting}: write it as  key.subkey=value  without spaces around '='")
        try:
            new = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as problem:
            raise RecipeError(
                f"--set {setting}: the value {text!r} is not valid YAML; put quotes around it"
            ) from problem
        _assign(result, key.split("."), new=new, origin=f"--set {setting}")
    return result


_DOTTED = re.compile(r"[^.\s]+(\.[^.\s]+)*")


def _assign(node: Any, keys: list[str], *, new: Any, origin: str) -> None:
    for position, key in enumerate(keys):
        if isinstance(node, list):
            slot: Any = _index(node, key, origin=origin)
        elif isinstance(node, dict):
            # {1: World} has an integer key, which a setting can only name by its text.
            slot = next((present for present in node if str(present) == key), key)
        else:
            raise RecipeError(f"{origin}: {'.'.join(keys[:position])} is the value {node!r} and has no key {key!r}")
        if position == len(keys) - 1:
            node[slot] = new
            return
        below = node.get(slot) if isinstance(node, dict) else node[slot]
        if below is None:
            below = node[slot] = {}
        elif isinstance(below, str):
            below = node[slot] = {_SHORT_FORMS.get(key, "name"): below}
        node = below


def _index(items: list[Any], key: str, *, origin: str) -> int:
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    legal = f"write 0 to {len(items) - 1}" if items else "set the whole list:  key=[...]"
    raise RecipeError(f"{origin}: {key!r} is no index of a list with {len(items)} items; {legal}")


# `model: some/id` is short for `model: {id: some/id}`; every other short form names a component.
_SHORT_FORMS = {"model": "id"}


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value


def _collect(
    node: yaml.Node, path: tuple[str, ...], *, lines: dict[tuple[str, ...], int], repeated: list[Repetition]
) -> None:
    if len(path) > _DEEPEST or len(lines) > _MOST_VALUES:
        # Aliases (*name) can contain themselves, or double in size line by line.
        raise RecipeError(f"more than {_DEEPEST} levels or {_MOST_VALUES} values; write it without aliases")
    if isinstance(node, yaml.MappingNode):
        seen: dict[tuple[str, str], int] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = key_node.start_mark.line + 1
            here = (*path, key)
            identity = (key_node.tag, key)
            if identity in seen:
                repeated.append(Repetition(here, line, seen[identity]))
            seen[identity] = lines[here] = line
            _collect(value_node, here, lines=lines, repeated=repeated)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            here = (*path, str(index))
            lines[here] = item.start_mark.line + 1
            _collect(item, here, lines=lines, repeated=repeated)
