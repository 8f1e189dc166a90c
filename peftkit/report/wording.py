"""Numbers as people read them."""

from __future__ import annotations

import math

_ORIGINS = {
    "local": "local files",
    "hub": "Hugging Face hub",
    "mirror": "mirror",
    "wheel": "Python package",
    "memory": "given in memory",
}

_TIME_UNITS = ((3600, "min", 60, "s", 1), (86400, "h", 3600, "min", 60), (math.inf, "d", 86400, "h", 3600))


def number(value: float, digits: int = 4) -> str:
    """A score or loss: 0.9123, 12,345.7, 3.2e-05; `nan` for what is none."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1000:
        return f"{value:.{digits}f}"
    return f"{value:,.1f}" if 1000 <= abs(value) < 1e9 else f"{value:.1e}"


def share(part: float, whole: float) -> str:
    """`part` of `whole` in percent, to two or three digits: 0.27 %, 12.5 %, 100 %."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    if percent in (0, 100):
        return f"{percent:.0f} %"
    if percent < 0.01:
        return "< 0.01 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.2f} %" if percent < 1 else f"{percent:.1f} %"


def count(value: int) -> str:
    """A number of parameters or rows: 950, 12.3 k, 109.5 M, 7.1 B."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.1f} {unit}"
    return f"{value:,}"


def duration(seconds: float) -> str:
    """3.4 s, 2 min 5 s, 1 h 12 min, 2 d 3 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for below, large, large_seconds, small, small_seconds in _TIME_UNITS:
        if whole < below:
            break
    rest = whole % large_seconds // small_seconds
    return f"{whole // large_seconds} {large}" + (f" {rest} {small}" if rest else "")


def size(amount: int) -> str:
    """Bytes: 512 B, 1.5 KiB, 2.3 GiB."""
    value, units = float(amount), iter(("B", "KiB", "MiB", "GiB"))
    for unit in units:
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def plain_name(name: str) -> str:
    """sequence_classification -> sequence classification."""
    return name.replace("_", " ")


def origin(word: str) -> str:
    """Where an artifact came from, in words."""
    return _ORIGINS.get(word, word)
