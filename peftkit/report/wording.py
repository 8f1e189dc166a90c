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

_CAPITALS = frozenset({"f1", "mse", "rmse"})
_PERCENT = "\N{NO-BREAK SPACE}%"
NOTHING = "\N{EN DASH}"
"""Stands where there is no number."""


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
        return NOTHING
    percent = 100 * part / whole
    if percent in (0, 100):
        return f"{percent:.0f}{_PERCENT}"
    if percent < 0.001:
        return f"< 0.001{_PERCENT}"
    if percent > 99.9:
        return f"> 99.9{_PERCENT}"
    digits = 1 if percent >= 1 else 2 if percent >= 0.1 else 3
    return f"{percent:.{digits}f}{_PERCENT}"


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
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return _two_units(minutes, "min", rest, "s")
    hours, minutes = divmod(minutes, 60)
    return _two_units(hours, "h", minutes, "min") if hours < 24 else _two_units(hours // 24, "d", hours % 24, "h")


def _two_units(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large} {large_unit}" + (f" {small} {small_unit}" if small else "")


def size(amount: int) -> str:
    """Bytes: 512 B, 1.5 KiB, 2.3 GiB."""
    value = float(amount)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def plain_name(name: str) -> str:
    """sequence_classification -> sequence classification, rmse -> RMSE."""
    return " ".join(word.upper() if word in _CAPITALS else word for word in name.split("_"))


def origin(word: str) -> str:
    """Where an artifact came from, in words."""
    return _ORIGINS.get(word, word)
