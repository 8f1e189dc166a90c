"""`peftkit cache list | verify | clear`: our own entries, and what runs have computed and later ones use.

What was fetched from the hub lies in the hub's cache.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from peftkit.artifacts.entries import read_entry, remove_entry
from peftkit.artifacts.places import answers_dir, encodings_dir, entries_dir, staging_dir, trunks_dir, views_dir
from peftkit.errors import ArtifactError

_COMPUTED = {"answers": answers_dir, "encodings": encodings_dir, "trunks": trunks_dir}
"""What runs have computed, by name; each run verifies what it reads of it."""
_COMPUTED_KIND = "computed"


@dataclass(frozen=True)
class CacheEntry:
    """One line of `peftkit cache list`.

    Args:
        name: what `peftkit cache clear` takes.
        kind: "model", "dataset", "wheel", "gguf", "download" for a wheel that was fetched but not used up yet, or
            "computed".
        path: the entry's folder; its files are in `content/` below.
        bytes: size of all its files.
        files: number of files in its content.
        origin: where it came from, in words; "unknown" if its manifest is damaged.
    """

    name: str
    kind: str
    path: Path
    bytes: int
    files: int
    origin: str


def list_entries() -> list[CacheEntry]:
    """All entries by name, damaged ones too, and behind them what was computed; the files are not read."""
    computed = [
        _measured(folder(), name=name, kind=_COMPUTED_KIND, origin="runs on this machine")
        for name, folder in _COMPUTED.items()
        if folder().is_dir()
    ]
    return _downloaded() + computed


def verify_entries() -> list[tuple[CacheEntry, str | None]]:
    """Every entry with what is wrong with it, naming the file; None if all its files are sound."""
    return [(entry, _problem(entry.path)) for entry in _downloaded()]


def clear_entries(name: str | None = None) -> list[CacheEntry]:
    """Remove one entry, or all of them with every leftover of broken-off work.

    Returns:
        What was removed.

    Raises:
        ArtifactError: there is no such entry, or it cannot be removed.
    """
    entries = list_entries()
    chosen = [entry for entry in entries if name in (None, entry.name)]
    if name is not None and not chosen:
        raise ArtifactError(_unknown(name, [entry.name for entry in entries]))
    for entry in chosen:
        if entry.kind == _COMPUTED_KIND:
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            remove_entry(entry.path)
    if name is None:
        for leftover in (staging_dir(), views_dir()):
            shutil.rmtree(leftover, ignore_errors=True)
    return chosen


def _downloaded() -> list[CacheEntry]:
    if not entries_dir().is_dir():
        return []
    return [_described(folder) for folder in sorted(entries_dir().iterdir()) if folder.is_dir()]


def _described(folder: Path) -> CacheEntry:
    try:
        origin = read_entry(folder).manifest.source
    except ArtifactError:
        origin = "unknown"
    entry = _measured(folder, name=folder.name, kind=folder.name.partition("--")[0], origin=origin)
    return replace(entry, files=sum(1 for path in (folder / "content").rglob("*") if path.is_file()))


def _measured(folder: Path, *, name: str, kind: str, origin: str) -> CacheEntry:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return CacheEntry(name, kind, folder, sum(sizes), len(sizes), origin)


def _problem(folder: Path) -> str | None:
    try:
        return read_entry(folder).problem()
    except ArtifactError as problem:
        return str(problem)


def _unknown(name: str, known: list[str]) -> str:
    if not known:
        return f"there is no cache entry {name!r}; the cache '{entries_dir().parent}' is empty"
    close = get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"there is no cache entry {name!r}{hint} (there are: {', '.join(known)})"
