"""The record of a run that failed: why, in one line, and the end of what it said."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from peftkit.errors import RunError

_BUG = 70
"""Exit code of an error that is none of the user's; the line before its message names the exception."""
_LINES_KEPT = 20


@dataclass(frozen=True)
class Failure:
    """Why a run has failed.

    Args:
        exit_code: of its process; negative: the number of the signal that killed it.
        reason: one line.
        seconds: from its start.
        ended: UTC, ISO 8601.
        end_of_log: the last lines that it wrote.
    """

    exit_code: int
    reason: str
    seconds: float
    ended: str
    end_of_log: tuple[str, ...]

    def write(self, path: Path) -> None:
        """Write the record; the file appears whole or not at all."""
        staged = path.with_name(f".{path.name}.part")
        staged.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", "utf-8")
        staged.replace(path)


def read_reason(path: Path) -> str | None:
    """The reason in a record of a failure; None if there is no record.

    Raises:
        RunError: the record is damaged.
    """
    if not path.is_file():
        return None
    try:
        return str(json.loads(path.read_text("utf-8"))["reason"])
    except (ValueError, KeyError, TypeError) as problem:
        raise RunError(f"'{path}' is damaged ({problem}); delete it, and the run starts anew") from problem


def explain(exit_code: int, log: str) -> tuple[str, tuple[str, ...]]:
    """Reason in one line, and the last lines of what a failed run wrote."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    return _reason(exit_code, lines), tuple(lines[-_LINES_KEPT:])


def _reason(exit_code: int, lines: Sequence[str]) -> str:
    if exit_code < 0:
        hint = ", often because memory ran out" if -exit_code == getattr(signal, "SIGKILL", None) else ""
        return f"killed by {_signal_name(-exit_code)}{hint}"
    start = next((place for place in reversed(range(len(lines))) if lines[place].startswith("error: ")), None)
    if start is None:
        return f"exit code {exit_code}{f': {lines[-1].strip()}' if lines else ''}"
    if exit_code == _BUG and start > 0:
        return lines[start - 1].strip()
    return " ".join(line.strip() for line in lines[start:]).removeprefix("error: ")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
