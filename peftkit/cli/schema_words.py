"""JSON schema of an option in words a reader of recipes knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true | false", "null": "empty"}

_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "minLength": "length at least",
    "pattern": "pattern",
}


@dataclass(frozen=True)
class Option:
    """One key of a recipe.

    Args:
        type: what may stand there.
        default: as YAML writes it; None if the key is required.
        meaning: one or two sentences.
    """

    name: str
    type: str
    default: str | None
    meaning: str


def options_of(model: type[BaseModel]) -> list[Option]:
    """The options of a component or section, in the order of its fields."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    required = schema.get("required", [])
    return [
        Option(
            name=name,
            type=type_in_words(node, definitions),
            default=None if name in required else _default(model, name),
            meaning=node.get("description", ""),
        )
        for name, node in schema.get("properties", {}).items()
    ]


def _default(model: type[BaseModel], name: str) -> str:
    from pydantic import BaseModel

    value = model.model_fields[name].get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return "see its own keys"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)


def type_in_words(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """E.g. `{"type": "integer", "minimum": 1}` -> "whole number, at least 1"."""
    if "x-registry" in node:
        return f"{_noun(node['x-registry'])} (name or mapping)"
    if "$ref" in node:
        return type_in_words(definitions[node["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in node:
        parts = [type_in_words(part, definitions) for part in node["anyOf"] if part.get("type") != "null"]
        return " | ".join(dict.fromkeys(parts))
    if "enum" in node:
        return " | ".join(map(str, node["enum"]))
    if "const" in node:
        return str(node["const"])
    return _typed(node, definitions)


def _typed(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    kind = node.get("type")
    if kind == "array":
        items = node.get("items") or ({"anyOf": node["prefixItems"]} if "prefixItems" in node else {})
        return f"list of {_grouped(type_in_words(items, definitions))}"
    if kind == "object":
        if "properties" in node:
            return f"mapping with the keys {', '.join(node['properties'])}"
        values = node.get("additionalProperties")
        return (
            f"mapping to {_grouped(type_in_words(values, definitions))}" if isinstance(values, Mapping) else "mapping"
        )
    bounds = [f"{words} {_bound(node[key])}" for key, words in _BOUNDS.items() if key in node]
    return ", ".join([_TYPES.get(str(kind), "any value"), *bounds])


def _grouped(words: str) -> str:
    return f"({words})" if " | " in words else words


def _bound(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}" if abs(value) < 10**6 else str(value)


def _noun(package: str) -> str:
    from peftkit.recipe import KINDS

    return next((registry.noun for registry in KINDS.values() if registry.package == package), "component")
