"""Tags that mark spans: BIO, IOB1 and BIOES, checked, and turned into each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

Scheme = Literal["BIO", "IOB1", "BIOES", "none"]
Span = tuple[str, int, int]
"""Type, first word, word after the last."""
OUTSIDE = "O"


def parts(tag: str) -> tuple[str, str]:
    """Prefix and type: B-person is B and person; O is O and nothing."""
    prefix, _, kind = tag.partition("-")
    return prefix, kind


def recognized(rows: Iterable[Sequence[str]]) -> Scheme:
    """The scheme that tags are written in: the first of BIO, IOB1, BIOES that none of them breaks, else by prefixes."""
    rows = [list(row) for row in rows]
    seen = {tag for row in rows for tag in row}
    prefixes = {parts(tag)[0] for tag in seen if tag != OUTSIDE}
    marked = all(tag == OUTSIDE or parts(tag)[1] for tag in seen)
    if not seen - {OUTSIDE} or not marked or not prefixes <= {"B", "I", "E", "S"}:
        return "none"
    if prefixes & {"E", "S"}:
        return "BIOES"
    if any(problem(row, "BIO") for row in rows) and not any(problem(row, "IOB1") for row in rows):
        return "IOB1"
    return "BIO"


def may_follow(before: str | None, after: str | None, scheme: Scheme) -> bool:
    """Whether a tag may stand behind another; None is the start, or the end, of the sentence."""
    if scheme == "none":
        return True
    one, kind = parts(before) if before is not None else (OUTSIDE, "")
    two, other = parts(after) if after is not None else (OUTSIDE, "")
    if scheme == "BIO":
        return two != "I" or (one in ("B", "I") and kind == other)
    if scheme == "IOB1":
        return two != "B" or (one in ("B", "I") and kind == other)
    opened = one in ("B", "I")
    return (two in ("I", "E") and kind == other) if opened else two in (OUTSIDE, "B", "S")


def problem(tags: Sequence[str], scheme: Scheme) -> str | None:
    """The first thing in a sentence that breaks its scheme, or None."""
    if scheme == "none":
        return None
    legal = {"BIO": "BIO", "IOB1": "BIO", "BIOES": "BIOES"}[scheme]
    for place, tag in enumerate(tags):
        prefix, kind = parts(tag)
        if prefix not in legal or (prefix == OUTSIDE) != (tag == OUTSIDE) or (prefix != OUTSIDE and not kind):
            return f"the tag {tag!r} of word {place} is none of the scheme {scheme}"
    for place in range(len(tags) + 1):
        before, after = tags[place - 1] if place else None, tags[place] if place < len(tags) else None
        if not may_follow(before, after, scheme):
            where = f"word {place}" if after is not None else "the end"
            return f"{after or 'the end'!r} at {where} may not follow {before or 'the start'!r} in the scheme {scheme}"
    return None


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The spans of a sentence in any of the schemes; a tag that breaks its scheme opens a span."""
    spans: list[Span] = []
    start: int | None = None
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = parts(tag)
        before, former = parts(tags[place - 1]) if place else (OUTSIDE, "")
        goes_on = prefix in ("I", "E") and before in ("B", "I") and kind == former
        if start is not None and not goes_on:
            spans.append((former, start, place))
            start = None
        if prefix != OUTSIDE and not goes_on:
            start = place
    return spans


def tags_of(spans: Iterable[Span], words: int, scheme: Scheme) -> list[str]:
    """The tags of spans that do not overlap, in BIO or BIOES."""
    tags = [OUTSIDE] * words
    for kind, start, stop in spans:
        for place in range(start, stop):
            tags[place] = f"{'B' if place == start else 'I'}-{kind}"
        if scheme == "BIOES":
            tags[stop - 1] = f"{'S' if stop - start == 1 else 'E'}-{kind}"
    return tags


def names_of(kinds: Iterable[str], scheme: Scheme) -> list[str]:
    """Every tag that spans of these types can have, O first."""
    prefixes = "BIES" if scheme == "BIOES" else "BI"
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in prefixes)]
