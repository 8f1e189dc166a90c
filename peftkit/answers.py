"""The answer that a text comes to."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"(?:(?<!\d)-)?\d[\d,]*(?:\.\d+)?")
"""The 3 of 10-3 is not negative."""


def answer_in(text: str, pattern: str | None) -> str | None:
    """What `pattern` finds last in a text, or else the last number, or None; numbers in one form: 1,200.0 is 1200."""
    found = re.findall(pattern or _NUMBER, text)
    return _as_number(found[-1].strip()) if found else None


def pattern_problem(pattern: str, *, groups: int | None = None) -> str | None:
    """Why a text is no regular expression with so many groups, or None."""
    try:
        found = re.compile(pattern).groups
    except re.error as problem:
        return f"pattern {pattern!r} is no regular expression: {problem}"
    if groups is not None and found != groups:
        return f"pattern {pattern!r} has {found} groups; put the answer, and nothing else, in ( )"
    return None


def _as_number(text: str) -> str:
    if not _NUMBER.fullmatch(text.rstrip(".")):
        return text
    number = float(text.rstrip(".").replace(",", ""))
    return str(int(number)) if number.is_integer() else repr(number)
