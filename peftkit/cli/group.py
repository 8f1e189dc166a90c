"""What all commands share: options that mean the same everywhere, and how an interruption ends a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from peftkit.errors import InterruptedRunError

PluginFiles = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE", help="Python file that registers own components; may be repeated."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Overrule one key of the recipe: --set method.rank=16; may be repeated."
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", metavar="", help="Let the model's repository run its own Python code on this machine."
    ),
]


UsageError: Any = typer.BadParameter.__bases__[0]
"""A wrong command line. typer carries its own copy of click in newer versions and uses click itself in older ones; this
base of its public class is the right one in both."""


class CommandGroup(TyperGroup):
    """A group whose commands end with one line when the user interrupts them or contradicts its options."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; typer's own handling of an interruption differs between its versions."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as problem:
            raise InterruptedRunError("stopped") from problem
        except UsageError as problem:
            problem.ctx = problem.ctx or ctx
            raise
