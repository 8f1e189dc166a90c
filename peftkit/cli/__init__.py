"""The command line: `app` with one function per command. Nothing but typer is imported before a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from peftkit import __version__
from peftkit.cli.cache import cache_app
from peftkit.cli.comparison import compare
from peftkit.cli.components import list_components, print_schema, show
from peftkit.cli.group import CommandGroup
from peftkit.cli.machine import doctor
from peftkit.cli.prediction import predict
from peftkit.cli.reporting import report
from peftkit.cli.train import check, run


def _examples(text: str) -> str:
    """Lines of a help page that keep their breaks: the control character tells typer not to wrap them."""
    return f"\b\n{text}"


app = typer.Typer(
    name="peftkit",
    cls=CommandGroup,
    help="Fine-tune a pretrained model with few weights, as one recipe file says.",
    epilog=_examples(
        """Start with:
  peftkit show recipe              every key that a recipe may have
  peftkit check recipe.yaml        is the recipe sound, is its data?
  peftkit run recipe.yaml          train; the result is the folder runs/recipe
  peftkit predict runs/recipe "some text"
"""
    ),
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback(invoke_without_command=True)
def _peftkit(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", metavar="", help="Print the version and leave.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", metavar="", help="Show the traceback of errors too; stands before the command.")
    ] = False,
) -> None:
    if show_version:
        typer.echo(f"peftkit {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


_RUN = """Examples:
  peftkit run recipe.yaml
  peftkit run recipe.yaml --set method.rank=16 --run-dir runs/rank16
  peftkit run --resume runs/recipe
"""
_CHECK = """Examples:
  peftkit check recipe.yaml
  peftkit check recipe.yaml --set data.columns.text=review
"""
_PREDICT = """Examples:
  peftkit predict runs/recipe "a good film" "a bad film"
  peftkit predict runs/recipe --file new.jsonl --out answers.jsonl
  peftkit predict runs/recipe --file - < new.jsonl > answers.jsonl
\b
Each line of the output is the row with the answer's keys added. Where the row
has such a key already, the answer's is called predicted_<key>.
"""
_COMPARE = """Examples:
  peftkit compare suite.yaml
  peftkit compare suite.yaml --only lora --only full
  peftkit compare suite.yaml --report-only
"""
_REPORT = """Examples:
  peftkit report runs/recipe --open
"""
_LIST = """Examples:
  peftkit list
  peftkit list method
"""
_SHOW = """Examples:
  peftkit show method lora
  peftkit show recipe
  peftkit show training
"""
_SCHEMA = """Example, for editors that speak the YAML language server:
  peftkit schema > recipe.schema.json
and as first line of a recipe:
  # yaml-language-server: $schema=recipe.schema.json
"""

app.command("run", epilog=_examples(_RUN))(run)
app.command("check", epilog=_examples(_CHECK))(check)
app.command("predict", epilog=_examples(_PREDICT))(predict)
app.command("compare", epilog=_examples(_COMPARE))(compare)
app.command("report", epilog=_examples(_REPORT))(report)
app.command("list", epilog=_examples(_LIST))(list_components)
app.command("show", epilog=_examples(_SHOW))(show)
app.command("schema", epilog=_examples(_SCHEMA))(print_schema)
app.command("doctor")(doctor)
app.add_typer(cache_app)
