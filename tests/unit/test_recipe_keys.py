"""The frozen list of everything that a recipe can say: a key that changes or vanishes breaks people's recipes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from peftkit.cli.schema_words import options_of
from peftkit.recipe import KINDS, Recipe

KEYS_FILE = Path(__file__).with_name("recipe_keys.txt")
REGENERATE = "python tests/unit/test_recipe_keys.py"


def recipe_keys() -> list[str]:
    """`training.batch_size: whole number, at least 1 = 32`; of a component `method(lora).rank: ...`."""
    found = [*_keys_of(Recipe, "")]
    for kind, registry in KINDS.items():
        for name in registry.loaded_names():
            found += [f"{kind}({name})", *_keys_of(registry.get(name), f"{kind}({name}).")]
    return found


def _keys_of(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for option in options_of(section):
        inner = section.model_fields[option.name].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and inner.__module__ == Recipe.__module__:
            yield from _keys_of(inner, f"{prefix}{option.name}.")
        else:
            default = "(required)" if option.default is None else f"= {option.default}"
            yield f"{prefix}{option.name}: {option.type} {default}"


def test_no_recipe_key_changes_by_accident() -> None:
    frozen = KEYS_FILE.read_text("utf-8").splitlines()
    present = recipe_keys()
    gone = [f"- {line}" for line in frozen if line not in present]
    new = [f"+ {line}" for line in present if line not in frozen]
    difference = "\n".join([*gone, *new]) or "only the order"
    assert present == frozen, (
        f"the keys of a recipe differ from {KEYS_FILE.name}:\n{difference}\n"
        f"A line with - breaks recipes that people have. If the change is meant, freeze it with  {REGENERATE}"
    )


def test_the_list_goes_down_to_nested_sections_and_component_options() -> None:
    present = recipe_keys()
    for line in (
        "seed: whole number, at least 0, less than 4294967296 = 0",
        "model.max_length: whole number, at least 2 = 128",
        "task: task (name or mapping) (required)",
        "training.evaluate_every: epoch | whole number, at least 1 = epoch",
        "method(lora).rank: whole number, at least 1 = 8",
        "method(full)",
    ):
        assert line in present


if __name__ == "__main__":
    KEYS_FILE.write_text("\n".join(recipe_keys()) + "\n", "utf-8")
