"""Options that differ from layer to layer: values by the end of a layer's name, as peft reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from peftkit.errors import CapabilityError
from peftkit.methods.targets import folded

V = TypeVar("V")


def matching(key: str, names: Iterable[str]) -> list[str]:
    """The `names` that a key of peft's rank and alpha patterns selects: an ending, or a regular expression for one."""
    return [name for name in names if re.fullmatch(rf"(.*\.)?({key})", name)]


def by_pattern(layers: Sequence[str], patterns: Mapping[str, V], *, default: V, option: str) -> dict[str, V]:
    """The value of each layer: that of the first key which selects it, or `default`.

    Args:
        option: name of the option, for messages.

    Raises:
        CapabilityError: a key selects no layer, which peft would not notice.
    """
    for key in patterns:
        if not matching(key, layers):
            raise CapabilityError(
                f"method.{option}: {key!r} is the end of no updated layer's name; these are: "
                f"{', '.join(folded(layers))}"
            )
    values = dict.fromkeys(layers, default)
    for key in reversed(list(patterns)):
        values |= dict.fromkeys(matching(key, layers), patterns[key])
    return values
