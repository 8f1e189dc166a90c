"""Encoded rows on disk, by a digest of all that they were made of; what was not used for longest goes first."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from peftkit.artifacts.digests import files_below, folder_sha256
from peftkit.artifacts.notices import readable_bytes, tell
from peftkit.artifacts.places import cache_dir, encodings_dir, locked, staged, writing
from peftkit.errors import ArtifactError

LIMIT_BYTES = 10 * 2**30
"""Size of all together; the newest stays even if it is larger."""
_SPARE_BYTES = 2**30
"""Disk that is left to others."""
_SUMS = "sums.json"
_LOCK = "encodings"


def find_encoding(digest: str) -> Path | None:
    """The folder that was kept under a digest, its files verified; None if there is none, or it is damaged."""
    folder = encodings_dir() / digest
    if not folder.is_dir():
        return None
    try:
        sums = json.loads((folder / _SUMS).read_bytes())
        sound = sums == _sums(folder)
        os.utime(folder / _SUMS)  # so that it counts as used
    except (OSError, ValueError):
        sound = False
    if not sound:
        tell(f"encoded rows in '{folder}' are damaged; encoding them again")
    return folder if sound else None


def keep_encoding(digest: str, fill: Callable[[Path], None], *, size: int) -> Path:
    """Let `fill` write a folder that is kept under a digest, whole or not at all, in place of what was there.

    Args:
        size: bytes that it will have, about.

    Raises:
        ArtifactError: the cache cannot be written, or its disk is almost full.
    """
    with locked(_LOCK), writing():
        if shutil.disk_usage(cache_dir()).free < size + _SPARE_BYTES:
            raise ArtifactError(f"they need {readable_bytes(size)}, and the disk of '{cache_dir()}' is almost full")
        with staged(digest) as stage:
            fill(stage)
            (stage / _SUMS).write_text(json.dumps(_sums(stage)), "utf-8")
            folder = encodings_dir() / digest
            shutil.rmtree(folder, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage, folder)
        _make_room(folder)
    return folder


def _sums(folder: Path) -> dict[str, str]:
    return folder_sha256(folder, [name for name in files_below(folder) if name != _SUMS])


def _make_room(newest: Path) -> None:
    """Remove what was not used for longest until the rest is within the limit."""
    used = {folder: (folder / _SUMS).stat().st_mtime for folder in encodings_dir().iterdir()}
    used[newest] = time.time()
    sizes = {folder: sum(path.stat().st_size for path in folder.iterdir()) for folder in used}
    for folder in sorted(used, key=used.__getitem__):
        if sum(sizes.values()) <= LIMIT_BYTES or folder == newest:
            return
        shutil.rmtree(folder)
        del sizes[folder]
