"""One suite at a time in a folder."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftkit.errors import RunError

LOCK_FILE = ".lock"
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""Of file systems that cannot lock, such as some network shares."""


@contextmanager
def sole_use(folder: Path) -> Iterator[tuple[int, ...]]:
    """Holds the lock of a folder.

    Yields:
        What a child process has to inherit (`pass_fds`), so that the folder stays taken for as long as the child works
        in it, even if this process is killed. Empty on systems without such locks.

    Raises:
        RunError: another process holds it.
    """
    if sys.platform == "win32":
        yield ()
        return
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise RunError(
                f"another comparison, or a run that a killed one has left behind, works in '{folder}'; wait until it "
                "is done, or choose another folder with --out"
            ) from problem
        except OSError as problem:
            if problem.errno not in _NO_LOCKS_HERE:
                raise
        yield (lock,)
    finally:
        os.close(lock)
