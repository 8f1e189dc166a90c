"""A quicker import of bitsandbytes, which peft imports wherever it is installed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial, wraps
from typing import Any

from peftkit.quantization.messages import hide_no_news


def import_bitsandbytes() -> None:
    """Import bitsandbytes, if it is installed and nobody has yet, without loading the compiler of torch for it.

    bitsandbytes 0.50 decorates its fallback kernels with `torch.compile`, and to decorate takes a second of imports;
    they are compiled when they are first called instead.
    """
    hide_no_news()
    if "bitsandbytes" not in sys.modules:
        with _compiling_later(), contextlib.suppress(ImportError):
            import bitsandbytes  # noqa: F401 # for its effect: later imports find it there


@contextlib.contextmanager
def _compiling_later() -> Iterator[None]:
    import torch

    now = torch.compile
    torch.compile = partial(_later, now)
    try:
        yield
    finally:
        torch.compile = now


def _later(now: Callable[..., Any], function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """What `torch.compile` gives, as function or as decorator, but compiled by its first call."""
    if function is None:
        return partial(_later, now, **options)
    compiled = cache(lambda: now(function, **options))
    return wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))
