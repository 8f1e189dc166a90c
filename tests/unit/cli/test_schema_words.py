from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from peftkit.cli.schema_words import Option, options_of, type_in_words
from peftkit.recipe import KINDS, ModelSpec, NamedMetric, Recipe


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "whole number"),
        (float, "number"),
        (str, "text"),
        (bool, "true | false"),
        (Path, "text"),
        (Any, "any value"),
        (Annotated[int, Field(ge=1)], "whole number, at least 1"),
        (Annotated[float, Field(gt=0, lt=1)], "number, more than 0, less than 1"),
        (Annotated[float, Field(ge=0.25, le=2.5)], "number, at least 0.25, at most 2.5"),
        (Annotated[int, Field(lt=2**32)], "whole number, less than 4294967296"),
        (Annotated[str, Field(min_length=1)], "text, length at least 1"),
        (Annotated[str, Field(pattern="^a+$")], "text, pattern ^a+$"),
        (Literal["a", "b"], "a | b"),
        (Literal["a"], "a"),
        (Literal["epoch"] | Annotated[int, Field(ge=1)], "epoch | whole number, at least 1"),
        (int | None, "whole number"),
        (tuple[str, ...], "list of text"),
        (list[Literal["a", "b"]], "list of (a | b)"),
        (tuple[float, float], "list of number"),
        (dict[str, str], "mapping to text"),
        (dict[str, int | str], "mapping to (whole number | text)"),
        (dict, "mapping"),
        (list, "list of any value"),
        (tuple[str, ...] | dict[str, str] | None, "list of text | mapping to text"),
        (NamedMetric, "metric (name or mapping)"),
        (tuple[NamedMetric, ...], "list of metric (name or mapping)"),
    ],
)
def test_types_in_words(annotation: Any, words: str) -> None:
    schema = TypeAdapter(annotation).json_schema()
    assert type_in_words(schema, schema.get("$defs", {})) == words


def test_a_section_inside_names_its_keys() -> None:
    schema = TypeAdapter(list[ModelSpec]).json_schema()
    words = type_in_words(schema, schema["$defs"])
    assert words == f"list of mapping with the keys {', '.join(ModelSpec.model_fields)}"


class Example(BaseModel):
    """Options of every sort."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    must: int
    """Has to be there."""
    maybe: str | None = None
    text: str = "lin"
    nothing: str = ""
    rate: float = 1e-05
    flag: bool = False
    names: tuple[str, ...] = ("a", "ä")
    made: list[int] = Field(default_factory=lambda: [1])


def test_options_carry_default_and_meaning() -> None:
    assert options_of(Example) == [
        Option("must", "whole number", None, "Has to be there."),
        Option("maybe", "text", "none", ""),
        Option("text", "text", "lin", ""),
        Option("nothing", "text", '""', ""),
        Option("rate", "number", "1e-05", ""),
        Option("flag", "true | false", "false", ""),
        Option("names", "list of text", '["a", "ä"]', ""),
        Option("made", "list of whole number", "[1]", ""),
    ]


def test_no_option_of_the_project_is_of_a_type_without_words() -> None:
    sections = [Recipe, *(registry.get(name) for registry in KINDS.values() for name in registry.loaded_names())]
    assert [
        f"{section.__name__}.{option.name}"
        for section in sections
        for option in options_of(section)
        if "any value" in option.type
    ] == []
