"""Text for people: aligned and wrapped on a terminal, one line per item in a pipe; colour only where it is wanted."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TextIO

import typer


def print_pairs(pairs: Iterable[tuple[str, str]], *, indent: int = 0) -> None:
    """Names with their meanings in two columns."""
    pairs = list(pairs)
    width = max((len(name) for name, _ in pairs), default=0) + 2
    for name, meaning in pairs:
        print_wrapped(meaning, first=f"{'':{indent}}{name:{width}}", rest=" " * (indent + width))


def print_wrapped(text: str, *, first: str = "", rest: str = "") -> None:
    """`text` after the prefix `first`; on a terminal its further lines start with `rest`."""
    text = " ".join(text.split())
    if sys.stdout.isatty():
        columns = max(40, shutil.get_terminal_size((80, 24)).columns)
        wrapper = textwrap.TextWrapper(
            columns, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
        )
        typer.echo(wrapper.fill(text) or first.rstrip())
    else:
        typer.echo(f"{first}{text}".rstrip())


def print_columns(rows: Sequence[Sequence[str]], *, header: Sequence[str]) -> None:
    """Rows in aligned columns; the last column may be long."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header) - 1)]
    for row in table:
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*cells, row[-1]]).rstrip())


def warn(text: str) -> None:
    """A line on standard error about what the user can act on."""
    _mark("warning", typer.colors.YELLOW, text)


def complain(text: str) -> None:
    """An error on standard error, its text as it is: nothing in it is markup."""
    _mark("error", typer.colors.RED, text)


def _mark(word: str, colour: str, text: str) -> None:
    word = f"{word}:"
    typer.echo(f"{typer.style(word, fg=colour, bold=True) if _coloured(sys.stderr) else word} {text}", err=True)


def _coloured(stream: TextIO) -> bool:
    # https://no-color.org: any non-empty value turns colour off.
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
