"""One entry of our cache: a folder `content/` and, written last, a manifest with the SHA-256 of every file in it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from peftkit.artifacts.artifact import Artifact
from peftkit.artifacts.digests import digest_over, file_sha256, folder_sha256
from peftkit.artifacts.places import entries_dir, locked, staged, staging_dir, writing
from peftkit.errors import ArtifactError
from peftkit.results import ArtifactRecord

MANIFEST_FILE = "manifest.json"
CONTENT_DIR = "content"

Kind = Literal["model", "dataset", "wheel", "gguf", "download"]


class FileSum(BaseModel):
    """Digest and size of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    size: int


class Origin(BaseModel):
    """What an entry is, and where it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: Kind
    locator: str
    origin: Literal["local", "mirror", "wheel"]
    source: str
    revision: str | None = None
    note: str | None = None


class Manifest(Origin):
    """An entry's origin with the digest of every file in its content folder."""

    format: Literal[1] = 1
    files: Mapping[str, FileSum]


@dataclass(frozen=True)
class Entry:
    """A finished entry.

    Args:
        folder: holds the manifest and the content folder.
    """

    folder: Path
    manifest: Manifest

    @property
    def content(self) -> Path:
        """The files themselves, nothing else."""
        return self.folder / CONTENT_DIR

    def problem(self, names: Collection[str] | None = None) -> str | None:
        """What is wrong with the files (or only with those named), naming the first; None if they are sound."""
        present = _content_files(self.content)
        if strangers := sorted(present - self.manifest.files.keys()):
            return f"'{strangers[0]}' does not belong there"
        for name, expected in self.manifest.files.items():
            if names is not None and name not in names:
                continue
            if name not in present:
                return f"'{name}' is missing"
            path = self.content / name
            if path.stat().st_size != expected.size:
                return f"'{name}' has {path.stat().st_size} bytes instead of {expected.size}"
            if file_sha256(path) != expected.sha256:
                return f"'{name}' has changed (its SHA-256 differs)"
        return None

    def artifact(self, locator: str, *, names: Collection[str] | None = None) -> Artifact:
        """The content, verified.

        Args:
            names: the files that will be used; not given: all.

        Raises:
            ArtifactError: a file is damaged.
        """
        if problem := self.problem(names):
            raise ArtifactError(damage_message(self.folder, problem))
        sums = {name: file.sha256 for name, file in self.manifest.files.items() if names is None or name in names}
        record = ArtifactRecord(
            locator=locator,
            origin=self.manifest.origin,
            revision=self.manifest.revision,
            sha256=digest_over(sums),
            note=self.manifest.note,
        )
        return Artifact(self.content, record)


def entry_name(kind: str, *parts: str) -> str:
    """Name of a cache entry, fit for a folder and a command line: model--owner--name--1.0."""
    return "--".join([kind, *(re.sub(r"[^\w.-]+", "--", part, flags=re.ASCII) for part in parts)])


def damage_message(folder: Path, problem: str) -> str:
    """The error text for a damaged entry, with the command that repairs it."""
    return (
        f"the cache entry {folder.name!r} is damaged: {problem} in '{folder}'; "
        f"remove it with  peftkit cache clear {folder.name}  and run again"
    )


def read_entry(folder: Path) -> Entry:
    """The entry in a folder; its files are not verified.

    Raises:
        ArtifactError: its manifest is missing or cannot be read.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except (OSError, ValidationError) as problem:
        raise ArtifactError(damage_message(folder, f"'{MANIFEST_FILE}' is missing or unreadable")) from problem
    return Entry(folder, manifest)


def find_entry(name: str) -> Entry | None:
    """The entry of that name, unverified; None if there is none.

    Raises:
        ArtifactError: it is there, but its manifest is damaged.
    """
    folder = entries_dir() / name
    return read_entry(folder) if folder.is_dir() else None


def find_or_make(origin: Origin, fill: Callable[[Path], None]) -> Entry:
    """The entry `origin.name`; if there is none yet, `fill` writes its content into the empty folder it is given.

    The entry appears whole or not at all, and only one process fills it.

    Raises:
        ArtifactError: the entry's manifest is damaged, or the cache cannot be written.
    """
    if (found := find_entry(origin.name)) is not None:
        return found
    with locked(origin.name):
        if (found := find_entry(origin.name)) is not None:
            return found
        with staged(origin.name) as stage:
            content = stage / CONTENT_DIR
            content.mkdir()
            with writing():
                fill(content)
                _write_manifest(stage, origin)
                entries_dir().mkdir(parents=True, exist_ok=True)
                os.replace(stage, entries_dir() / origin.name)
        return read_entry(entries_dir() / origin.name)


def remove_entry(folder: Path) -> None:
    """Remove an entry; one that is gone already is fine.

    Raises:
        ArtifactError: it cannot be removed.
    """
    with locked(folder.name), writing():
        if not folder.exists():
            return
        # First out of the way in one step: a removal that is broken off must not leave half an entry.
        doomed = staging_dir() / f"{folder.name}.removed"
        shutil.rmtree(doomed, ignore_errors=True)
        doomed.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, doomed)
        shutil.rmtree(doomed)


def _write_manifest(stage: Path, origin: Origin) -> None:
    content = stage / CONTENT_DIR
    sums = folder_sha256(content, _content_files(content))
    files = {name: FileSum(sha256=digest, size=(content / name).stat().st_size) for name, digest in sums.items()}
    manifest = Manifest(**origin.model_dump(), files=files)
    (stage / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1) + "\n", "utf-8")


def _content_files(content: Path) -> set[str]:
    return {path.relative_to(content).as_posix() for path in content.rglob("*") if not path.is_dir()}
