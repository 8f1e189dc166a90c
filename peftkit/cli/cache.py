"""`peftkit cache`: the models and data sets that were downloaded, and what runs keep for later ones."""

from __future__ import annotations

from typing import Annotated

import typer

from peftkit.cli.group import CommandGroup, UsageError

cache_app = typer.Typer(name="cache", cls=CommandGroup)


@cache_app.callback(invoke_without_command=True)
def _cache(context: typer.Context) -> None:
    """List, verify or delete what was downloaded and computed.

    These are models and data sets from mirrors and wheels (what comes from the hub itself lies in the hub's own cache),
    and what runs keep for later ones: encoded rows (encodings), answers of teachers, hidden states (trunks).
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@cache_app.command("list")
def list_cache() -> None:
    """List what is there with its size."""
    from peftkit.artifacts import cache_dir, list_entries
    from peftkit.cli.output import print_columns
    from peftkit.report.wording import size

    entries = list_entries()
    rows = [
        (entry.kind, entry.name, size(entry.bytes), str(entry.files), entry.origin)
        for entry in sorted(entries, key=lambda entry: (entry.kind, entry.name))
    ]
    if rows:
        print_columns(rows, header=("kind", "name", "size", "files", "origin"))
    total = size(sum(entry.bytes for entry in entries))
    typer.echo(f"{len(entries)} in {cache_dir()}, {total}")


@cache_app.command("verify")
def verify_cache() -> None:
    """Compare every downloaded file with its SHA-256."""
    from peftkit.artifacts import verify_entries
    from peftkit.errors import ArtifactError

    checked = verify_entries()
    for entry, problem in checked:
        typer.echo(f"{'damaged' if problem else 'ok':8}{entry.name}{f': {problem}' if problem else ''}")
    damaged = [entry.name for entry, problem in checked if problem]
    if damaged:
        raise ArtifactError(
            f"{len(damaged)} of {len(checked)} are damaged; delete them, they are fetched again when needed:  "
            + "  and  ".join(f"peftkit cache clear {name}" for name in damaged)
        )
    typer.echo(f"{len(checked)} verified")


@cache_app.command("clear")
def clear_cache(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One entry, as in `peftkit cache list`.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", metavar="", help="Delete every entry.")] = False,
) -> None:
    """Delete one of the entries that `list` names, or all."""
    if (name is None) != everything:
        raise UsageError("name one entry, or give --all")

    from peftkit.artifacts import clear_entries
    from peftkit.report.wording import size

    removed = clear_entries(name)
    for entry in removed:
        typer.echo(f"deleted {entry.name}, {size(entry.bytes)}")
    if not removed:
        typer.echo("the cache is empty")
