"""SHA-256 of files, and one digest over many."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 by name of files in a folder."""
    ordered = sorted(names)
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        return dict(zip(ordered, pool.map(lambda name: file_sha256(folder / name), ordered), strict=True))


def digest_over(sums: Mapping[str, str]) -> str:
    """One digest of many files: SHA-256 of the lines `<sha256>  <name>`, sorted by name, as `sha256sum` prints them."""
    lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    return hashlib.sha256(lines.encode()).hexdigest()


def files_below(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative to it, '/'-separated and sorted; hidden folders are left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts[:-1]))
