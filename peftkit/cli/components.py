"""`peftkit list`, `peftkit show` and `peftkit schema`: what a recipe can say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftkit.cli.group import PluginFiles, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

    from peftkit.registry import Registry


def list_components(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="KIND", help="One kind only: task, data, method, loss, metric, ...", show_default=False),
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """List the names that a recipe can use, by kind."""
    from peftkit.cli.method_facts import print_methods
    from peftkit.cli.output import print_pairs
    from peftkit.cli.plugin_files import load_plugin_files
    from peftkit.methods import methods
    from peftkit.recipe import KINDS

    load_plugin_files(plugin)
    chosen = KINDS if kind is None else dict([_kind(kind)])
    for word, registry in chosen.items():
        typer.echo(f"{word}:" if registry.noun == word else f"{word}:  ({registry.noun})")
        if kind is not None and registry is methods:
            print_methods(methods)
        else:
            print_pairs(_summaries(registry), indent=2)
        typer.echo()
    example = next(
        (f"{word} {names[0]}" for word, registry in chosen.items() if (names := registry.loaded_names())), None
    )
    if example:
        typer.echo(f"Options of one:  peftkit show {example}")


def show(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="task, data, method, loss, metric, ...; or a part of the recipe: recipe, model, training.",
        ),
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name from `peftkit list`, e.g. lora.", show_default=False)
    ] = None,
    plugin: PluginFiles = None,
) -> None:
    """Show the options of a component or of a part of the recipe."""
    from peftkit.cli.plugin_files import load_plugin_files

    load_plugin_files(plugin)
    sections = _sections()
    if kind in sections:
        if name is not None:
            raise UsageError(f"{kind} is a part of the recipe and takes no name")
        _print_options(sections[kind], title=kind)
        return
    word, registry = _kind(kind)
    if name is None:
        raise UsageError(f"which {registry.noun}? one of: {', '.join(registry.names())}")
    cls = registry.get(name)
    _print_options(cls, title=f"{word} {name}")
    typer.echo(f"\nIn a recipe:\n  {_example(cls, kind=word, name=name)}")


def print_schema(plugin: PluginFiles = None) -> None:
    """Print the JSON schema of recipes, for editors."""
    import json

    from peftkit.cli.plugin_files import load_plugin_files
    from peftkit.recipe import json_schema

    load_plugin_files(plugin)
    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _kind(word: str) -> tuple[str, Registry[Any]]:
    """A kind by its word in a recipe or by the name of its package: method, methods."""
    from peftkit.errors import UnknownComponentError
    from peftkit.recipe import KINDS
    from peftkit.registry import closest

    for kind, registry in KINDS.items():
        if word in (kind, registry.package.rpartition(".")[2]):
            return kind, registry
    words = [*KINDS, *_sections()]
    close = closest(word, words)
    hint = f"; did you mean {close!r}?" if close else ""
    raise UnknownComponentError(f"unknown kind {word!r}{hint} (known: {', '.join(KINDS)})")


def _sections() -> dict[str, type[BaseModel]]:
    from peftkit.recipe import ModelSpec, Recipe, TrainingOptions

    return {"recipe": Recipe, "model": ModelSpec, "training": TrainingOptions}


def _summaries(registry: Registry[Any]) -> Iterator[tuple[str, str]]:
    for name in registry.names():
        package = registry.plugin_package(name)
        if package is not None:
            yield name, f"(plugin of the package {package}, loaded when a recipe names it)"
        else:
            yield name, _paragraphs(registry.get(name))[0]


def _paragraphs(cls: type[BaseModel]) -> list[str]:
    import inspect

    return (inspect.getdoc(cls) or "").split("\n\n")


def _print_options(cls: type[BaseModel], *, title: str) -> None:
    from peftkit.cli.method_facts import method_facts
    from peftkit.cli.output import print_pairs, print_wrapped
    from peftkit.cli.schema_words import options_of
    from peftkit.methods import TuningMethod

    summary, *details = _paragraphs(cls)
    print_wrapped(summary, first=f"{title}: ")
    for paragraph in details:
        typer.echo()
        print_wrapped(paragraph)
    if issubclass(cls, TuningMethod):
        typer.echo()
        print_pairs(method_facts(cls), indent=2)
    options = options_of(cls)
    if not options:
        typer.echo("\nIt has no options.")
    for option in options:
        default = "required" if option.default is None else f"default {option.default}"
        typer.echo()
        print_wrapped(f"{option.type}; {default}", first=f"  {option.name}: ", rest=" " * 10)
        print_wrapped(option.meaning, first="      ", rest="      ")


def _example(cls: type[BaseModel], *, kind: str, name: str) -> str:
    """The component with what it requires and its first options, as YAML in one line."""
    import yaml

    from peftkit.recipe import Recipe
    from peftkit.registry import plain_values

    values: dict[str, Any] = {"name": name}
    for key, field in cls.model_fields.items():
        if field.is_required():
            values[key] = "..."
        elif len(values) < 3 and isinstance(field.default, (str, int, float)):
            values[key] = plain_values(field.default)
    spec = name if len(values) == 1 else values
    line: dict[str, Any] = {kind: spec} if kind in Recipe.model_fields else {f"{kind}s": [spec]}
    line = {"task": {"name": "grpo", **line}} if kind == "reward" else line
    return yaml.safe_dump(line, default_flow_style=True, sort_keys=False, width=10**6).strip()[1:-1]
