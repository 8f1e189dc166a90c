"""What the user is told while waiting; goes to standard error, so that standard output stays clean."""

from __future__ import annotations

import sys


def tell(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"peftkit: {message}\n")
    sys.stderr.flush()


def on_terminal() -> bool:
    """Whether someone watches, so that a progress bar makes sense."""
    return sys.stderr is not None and sys.stderr.isatty()


def readable_bytes(count: int) -> str:
    """A size for people: 83.5 MB."""
    if count < 1_000_000:
        return f"{count / 1_000:.1f} kB"
    return f"{count / 1_000_000:.1f} MB" if count < 1_000_000_000 else f"{count / 1_000_000_000:.1f} GB"
