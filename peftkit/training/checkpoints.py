"""Checkpoints that can be trusted: each carries a manifest, and only a whole one is resumed from.

The engine writes checkpoints in place, takes the newest folder even if it is torn, and skips a missing optimizer or
random state without a word; the manifest is written last and names every file with its digest.
"""

from __future__ import annotations

import json
from pathlib import Path

from peftkit.artifacts.digests import file_sha256

MANIFEST = "peftkit_manifest.json"


def seal(checkpoint: Path) -> None:
    """Write the manifest of a checkpoint that is complete."""
    manifest = {path.name: file_sha256(path) for path in sorted(checkpoint.iterdir()) if path.is_file()}
    manifest.pop(MANIFEST, None)
    (checkpoint / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every file is as it was written.

    Returns:
        The checkpoint, or None; and why newer ones were passed over.
    """
    found = sorted(folder.glob("checkpoint-*"), key=_step, reverse=True)
    passed_over: list[str] = []
    for checkpoint in found:
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint, passed_over
        passed_over.append(f"'{checkpoint}' is not whole: {problem}")
    return None, passed_over


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if nothing is."""
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return f"{MANIFEST} is missing, so writing was cut off"
    try:
        digests = json.loads(manifest.read_text("utf-8"))
    except ValueError:
        return f"{MANIFEST} is cut off"
    for name, digest in digests.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if file_sha256(path) != digest:
            return f"{name} has changed since it was written"
    return None


def _step(checkpoint: Path) -> int:
    digits = checkpoint.name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1
