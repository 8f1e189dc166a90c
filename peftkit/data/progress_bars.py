"""The datasets library's own progress bars, kept out of the way of a run's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden_progress_bars() -> Iterator[None]:
    """No bars of the datasets library inside; afterwards as before."""
    import datasets

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
