"""Imports of libraries so large that the garbage collector takes a fifth of their time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """No garbage is collected inside, and what is there at the end is never gone through again.

    The libraries create a million objects that live as long as the process; every so many new ones the collector goes
    through all of them.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
