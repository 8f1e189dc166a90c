from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import peftkit.errors
from peftkit.cli import app
from peftkit.cli.entry import main


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group with the words that call it."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), typer.main.get_command(app))]
    while waiting:
        words, command = waiting.pop(0)
        yield words, command
        waiting += [((*words, name), inner) for name, inner in getattr(command, "commands", {}).items()]


COMMANDS = dict(commands())
PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


def page(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*words, "--help"]) == 0
    return capsys.readouterr().out


def test_the_commands_are_those_that_the_documentation_promises() -> None:
    expected = "run check predict compare report list show schema doctor cache"
    assert [" ".join(words) for words in COMMANDS if len(words) == 1] == expected.split()
    assert [words[1] for words in COMMANDS if len(words) == 2] == ["list", "verify", "clear"]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_and_every_option_says_what_it_does(words: tuple[str, ...]) -> None:
    command = COMMANDS[words]
    assert command.help.strip()
    silent = [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]
    assert silent == []


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_pages_fit_a_narrow_terminal_uncut(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    text = page(words, capsys)
    assert max(map(len, text.splitlines())) <= 80
    cut = re.findall(r"^  ([a-z]+)  .*\.\.\.$", text, flags=re.MULTILINE)
    assert cut == [], "shorten the first line of these commands' docstrings"


@pytest.mark.parametrize("words", [words for words, command in COMMANDS.items() if command.epilog], ids=" ".join)
def test_examples_on_help_pages_are_legal_commands(words: tuple[str, ...]) -> None:
    examples = [line.strip() for line in COMMANDS[words].epilog.splitlines() if line.startswith("  peftkit ")]
    assert examples
    for example in examples:
        call = shlex.split(re.split(r"   | [<>] ", example)[0])[1:]
        command = COMMANDS[(call[0],)]
        command.make_context(call[0], call[1:])


def documented_commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("line", documented_commands())
def test_commands_in_the_documentation_are_legal(line: str) -> None:
    program, *call = shlex.split(line)
    assert program == "peftkit"
    words = (call[0], call[1]) if (call[0], *call[1:2]) in COMMANDS and len(call) > 1 else (call[0],)
    COMMANDS[words].make_context(words[-1], call[len(words) :])


def test_the_documentation_shows_every_command() -> None:
    shown = {shlex.split(line)[1] for line in documented_commands()}
    assert shown == {words[0] for words in COMMANDS if words}


def test_the_documented_exit_codes_are_those_of_the_errors() -> None:
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE.read_text("utf-8"), flags=re.MULTILINE)}
    errors = [value for value in vars(peftkit.errors).values() if isinstance(value, type)]
    assert documented == {error.exit_code for error in errors} | {0, 70}


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_both_spellings_of_help_work(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", flag]) == 0
    assert capsys.readouterr().out.startswith("Usage: peftkit run [OPTIONS] ")


def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache"]) == 0
    assert capsys.readouterr().out.rstrip() == page(("cache",), capsys).rstrip()
