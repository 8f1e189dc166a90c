"""The types of method that the installed peft knows, and what peftkit knows of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from peftkit.registry import closest

SET_BY_THE_RUN = {"task_type", "peft_type", "target_modules", "modules_to_save", "inference_mode", "peft_version"}
SET_BY_THE_RUN |= {"base_model_name_or_path", "revision", "auto_mapping"}

_BY_TASK = "it needs the number of a task with every row, which no task of peftkit gives"
REFUSED = {
    "ADALORA": "its rank allocator has to be stepped while training runs; use method adalora, which does",
    "POLY": f"{_BY_TASK}; use lora",
    "MULTITASK_PROMPT_TUNING": f"{_BY_TASK}; use prompt",
    "XLORA": "it mixes adapters that are trained already; train them one by one with lora",
    "TRAINABLE_TOKENS": "it needs the numbers of tokens; use method trainable_tokens, which takes the tokens",
}
"""Methods that would be built but not trained, with the reason."""
FIND_THEIR_LAYERS = {"SHADOW", "ADAPTION_PROMPT", "IA3"}
"""Methods that are put on whole blocks, or on layers that peft knows by the kind of model."""
REQUIRED = {"ADAPTION_PROMPT": ("adapter_len", "adapter_layers")}
"""Options without which peft fails and does not say why."""
KEYS_AND_VALUES = {"PREFIX_TUNING", "CARTRIDGE"}
"""Methods whose virtual tokens are keys and values of every layer: a pass that is computed again would miss them."""


def config_class_of(type_name: str) -> Any:
    """peft's configuration class of a type, by its name in `PeftType` in any case.

    Raises:
        ValueError: the installed peft has no such type.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIG_CLASSES

    known = {
        str(getattr(kind, "value", kind)): config_class
        for kind, config_class in CONFIG_CLASSES.items()
        if config_class.__module__.startswith("peft.")  # peftkit's own tuners have methods of their own
    }
    if type_name.upper() not in known:
        close = closest(type_name.upper(), known)
        hint = f"; did you mean {close.lower()!r}?" if close else ""
        listed = ", ".join(sorted(name.lower() for name in known))
        raise ValueError(f"type {type_name!r} is no method of the installed peft{hint} (it has: {listed})")
    return known[type_name.upper()]


def check_options(config_class: Any, options: Iterable[str]) -> None:
    """Raise a ValueError for an option that the class does not have, or that a run sets by itself."""
    names = [field.name for field in fields(config_class) if field.name not in SET_BY_THE_RUN]
    for key in options:
        if key in SET_BY_THE_RUN:
            raise ValueError(f"options.{key} is set by the run; for layers use method.target_modules")
        if key not in names:
            close = closest(key, names)
            hint = f"; did you mean {close!r}?" if close else ""
            raise ValueError(
                f"options.{key} is no option of {config_class.__name__}{hint} (it has: {', '.join(names)})"
            )
