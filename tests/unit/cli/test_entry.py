from __future__ import annotations

import errno
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftkit import __version__
from peftkit.cli import entry
from peftkit.cli.entry import main
from peftkit.errors import (
    ArtifactError,
    CapabilityError,
    DataError,
    InterruptedRunError,
    PeftkitError,
    RecipeError,
    RunError,
    UnknownComponentError,
)


@pytest.fixture
def fail_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the next command raise what is given."""

    def arrange(problem: BaseException) -> None:
        def command(**_: object) -> None:
            raise problem

        monkeypatch.setattr(entry, "app", command)

    return arrange


def test_version_and_bare_command_succeed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"peftkit {__version__}\n"
    assert main([]) == 0
    assert "Commands:\n  run " in capsys.readouterr().out


def test_help_imports_nothing_that_takes_time() -> None:
    code = (
        "import sys; from peftkit.__main__ import main; code = main(['--help'])\n"
        "slow = {'torch', 'pydantic', 'yaml', 'rich', 'numpy', 'transformers', 'importlib.metadata'}\n"
        "print('loaded:', code, sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: 0 []"


def test_a_bad_recipe_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("modle: x\n")
    for command in ("check", "run"):
        code = (
            f"import sys; from peftkit.__main__ import main; code = main([{command!r}, {str(recipe)!r}])\n"
            "print('loaded:', code, sorted({'torch', 'datasets', 'rich'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "loaded: 2 []\n"
        assert "modle (line 1): unknown key; did you mean 'model'?" in done.stderr


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (PeftkitError("no [bold]markup[/bold] \\[ here"), 1),
        (RecipeError("x"), 2),
        (UnknownComponentError("x"), 2),
        (DataError("x"), 3),
        (CapabilityError("x"), 4),
        (RunError("x"), 5),
        (ArtifactError("x"), 6),
    ],
)
def test_an_error_is_one_message_and_its_own_exit_code(
    fail_with: Any, capsys: pytest.CaptureFixture[str], problem: PeftkitError, code: int
) -> None:
    fail_with(problem)
    assert main(["run"]) == code
    captured = capsys.readouterr()
    assert captured.err == f"error: {problem}\n"
    assert captured.out == ""


def test_debug_adds_the_traceback_but_only_before_the_command(
    fail_with: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(DataError("bad rows"))
    assert main(["--debug", "run"]) == 3
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last)")
    assert shown.endswith("error: bad rows\n")
    assert main(["run", "--debug"]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_what_was_not_expected_is_called_a_bug_with_its_traceback(
    fail_with: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(KeyError("weights"))
    assert main(["run"]) == 70
    shown = capsys.readouterr().err
    assert "KeyError: 'weights'" in shown
    assert shown.endswith(
        f"error: this is a bug in peftkit {__version__}, not in your input; please report it with the lines above\n"
    )
    assert shown.count("Traceback") == 1
    assert main(["--debug", "run"]) == 70
    assert capsys.readouterr().err.count("Traceback") == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_a_full_or_forbidden_disk_is_no_bug(fail_with: Any, capsys: pytest.CaptureFixture[str], number: int) -> None:
    fail_with(OSError(number, os.strerror(number), "runs/x"))
    assert main(["run"]) == 1
    assert capsys.readouterr().err == f"error: cannot use 'runs/x': {os.strerror(number)}\n"


def test_a_missing_internal_file_is_a_bug(fail_with: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(FileNotFoundError(errno.ENOENT, "No such file", "template"))
    assert main(["run"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_says_what_was_saved(fail_with: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fail_with(InterruptedRunError("stopped at step 3 of 9"))
    assert main(["run"]) == 130
    assert capsys.readouterr().err == "stopped at step 3 of 9\n"


def test_an_interruption_anywhere_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "p.py"
    plugin.write_text("raise KeyboardInterrupt\n")
    assert main(["list", "--plugin", str(plugin)]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runn"], "error: no such command 'runn'. Did you mean 'run'?; see  peftkit --help\n"),
        (["run", "--bogus"], "error: no such option: --bogus; see  peftkit run --help\n"),
        (["check"], "error: missing argument 'RECIPE'; see  peftkit check --help\n"),
        (["check", "a", "b"], "error: got unexpected extra argument"),
        (["run"], "error: name a recipe file, or a stopped run with --resume DIR; see  peftkit run --help\n"),
        (["cache", "clear"], "error: name one entry, or give --all; see  peftkit cache clear --help\n"),
        (["predict", "x", "--batch-size", "many", "text"], "error: invalid value for '--batch-size'"),
    ],
)
def test_a_wrong_command_line_names_the_help_page(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colour_appears_on_terminals_that_want_it(environment: dict[str, str], coloured: bool) -> None:
    leader, follower = pty.openpty()
    inherited = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    done = subprocess.run(
        [sys.executable, "-m", "peftkit", "check", "no[red]such.yaml"],
        stderr=follower,
        env={**inherited, "TERM": "xterm-256color", **environment},
        check=False,
    )
    shown = os.read(leader, 10_000).decode()
    os.close(leader)
    os.close(follower)
    assert done.returncode == 2
    assert ("\x1b[31m" in shown) is coloured
    assert "there is no recipe file 'no[red]such.yaml'" in shown


def test_a_pipe_that_closes_early_is_no_error() -> None:
    command = [sys.executable, "-m", "peftkit", "schema"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 1
