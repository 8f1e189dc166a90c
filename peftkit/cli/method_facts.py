"""What a user wants to know of a tuning method before choosing it, in words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from peftkit.methods import TuningMethod
    from peftkit.registry import Registry

BY_OPTIONS = "depends on its options"


def print_methods(registry: Registry[TuningMethod]) -> None:
    """Every method with the share that it trains, when to use it and where it comes from."""
    from peftkit.cli.output import print_wrapped
    from peftkit.methods.shares import MODEL

    names = registry.names()
    width = max(map(len, names)) + 2
    indent = " " * (2 + width + 10)
    print_wrapped("use it when", first=f"  {'':{width}}{'trains':>8}  ")
    for name in names:
        first = f"  {name:{width}}"
        package = registry.plugin_package(name)
        if package is not None:
            plugin = f"(plugin of the package {package}, loaded when a recipe names it)"
            print_wrapped(plugin, first=f"{first}{'':10}", rest=indent)
            continue
        cls = registry.get(name)
        first += f"{_share(name):>8}  "
        if sys.stdout.isatty():
            print_wrapped(cls.use_when, first=first, rest=indent)
            print_wrapped(cls.paper, first=indent, rest=indent)
        else:
            print_wrapped("; ".join(filter(None, (cls.use_when, cls.paper))), first=first)
    typer.echo()
    print_wrapped(
        f"trains: share of all parameters that train, with default options, on {MODEL} with a head for two classes"
    )


def method_facts(cls: type[TuningMethod]) -> Iterator[tuple[str, str]]:
    """Facts of a method with what they are about, for `peftkit show method`."""
    from peftkit.methods.shares import MODEL, share_of

    if cls.use_when:
        yield "use when", cls.use_when
    if cls.paper:
        yield "paper", cls.paper
    if share := share_of(cls.name):
        counted = f"{share.trainable:,} of {share.total:,} parameters"
        yield "trains", f"{share} of {MODEL} with a head for two classes: {counted}"
    yield "learning rate", f"{_fact(cls, 'default_learning_rate', lambda rate: f'{rate:g} unless the recipe sets one')}"
    yield "base weights", storage(cls)
    yield "saves", _fact(cls, "trains_base_weights", lambda whole: "a whole model" if whole else "an adapter")
    yield "merging", merging(cls)
    yield (
        "GPT-2",
        _fact(cls, "adapts_conv1d", lambda able: "works" if able else "refused: its layers store weights transposed"),
    )
    yield (
        "gradient checkpointing",
        _fact(
            cls,
            "allows_gradient_checkpointing",
            lambda able: "works" if able else "refused: it would change the gradients",
        ),
    )
    if cls.task_types is not None:
        yield "tasks", _fact(cls, "task_types", lambda kinds: ", ".join(sorted(kinds)))
    if cls.runs_to_the_end is True:
        yield "result", "the weights of the last step, not of the best evaluation; no early stopping"


def storage(cls: type[TuningMethod]) -> str:
    """Bits per stored weight of the bases that a method can sit on: `4, 8, 16 or 32 bits`."""

    def words(bits: Any) -> str:
        *others, last = map(str, sorted(bits))
        return f"{', '.join(others)} or {last} bits" if others else f"{last} bits"

    return _fact(cls, "base_bits", words)


def merging(cls: type[TuningMethod]) -> str:
    """Whether the result can be folded into the base."""
    if cls.trains_base_weights is True:
        return "not needed: the base itself has changed"
    return _fact(cls, "mergeable", lambda able: "into the base, outputs unchanged" if able else "not possible")


def _share(name: str) -> str:
    from peftkit.methods.shares import share_of

    return str(share_of(name) or "")


def _fact(cls: type[TuningMethod], name: str, words: Any) -> str:
    """A fact of the class in words; one that only an instance knows, such as a stack's, depends on its options."""
    value = getattr(cls, name)
    return BY_OPTIONS if isinstance(value, property) else str(words(value))
