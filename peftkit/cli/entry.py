"""Run a command, and turn what goes wrong into one clear message and an exit code."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import typer

from peftkit import __version__
from peftkit.cli import app
from peftkit.cli.group import UsageError
from peftkit.cli.output import complain
from peftkit.errors import InterruptedRunError, PeftkitError

_MACHINE_STATE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in takewhile(lambda argument: argument.startswith("-"), arguments)
    try:
        return int(app(args=list(arguments), prog_name="peftkit", standalone_mode=False) or 0)
    # The outermost frame: whatever arrives here must become an exit code, and only what is no bug loses its traceback.
    except BaseException as problem:
        if debug and not isinstance(problem, SystemExit):
            _print_traceback(problem)
        return _exit_code(problem, traceback_shown=debug)


def _exit_code(problem: BaseException, *, traceback_shown: bool) -> int:
    """Tell the user what happened."""
    if isinstance(problem, SystemExit):
        return problem.code if isinstance(problem.code, int) else int(problem.code is not None)
    if isinstance(problem, (InterruptedRunError, KeyboardInterrupt)):
        typer.echo(str(problem) or "stopped", err=True)
        return InterruptedRunError.exit_code
    if isinstance(problem, PeftkitError):
        complain(str(problem))
        return problem.exit_code
    if isinstance(problem, UsageError):
        return _wrong_usage(problem)
    if isinstance(problem, OSError) and problem.errno in _MACHINE_STATE and problem.filename:
        complain(f"cannot use '{problem.filename}': {problem.strerror}")
        return PeftkitError.exit_code
    if not traceback_shown:
        _print_traceback(problem)
    complain(f"this is a bug in peftkit {__version__}, not in your input; please report it with the lines above")
    return 70  # EX_SOFTWARE of sysexits.h


def _wrong_usage(problem: Any) -> int:
    words = (problem.ctx.command_path, problem.ctx.invoked_subcommand) if problem.ctx else ("peftkit",)
    command = " ".join(word for word in words if word)
    message = problem.format_message()
    complain(f"{message[:1].lower()}{message[1:].rstrip('.')}; see  {command} --help")
    return 2


def _print_traceback(problem: BaseException) -> None:
    import traceback

    traceback.print_exception(problem)
