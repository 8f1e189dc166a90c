"""Where things lie: our cache with its entries, staging folders and locks; the hub's own cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftkit.artifacts.notices import tell
from peftkit.errors import ArtifactError


def cache_dir() -> Path:
    """Our cache: PEFTKIT_CACHE, else XDG_CACHE_HOME/peftkit, else ~/.cache/peftkit. Need not exist yet."""
    if chosen := os.environ.get("PEFTKIT_CACHE"):
        return Path(chosen).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification says to ignore relative paths.
    base = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"
    return base / "peftkit"


def entries_dir() -> Path:
    """Finished entries, one folder each, named like the entry."""
    return cache_dir() / "entries"


def staging_dir() -> Path:
    """Unfinished work; whatever lies here unlocked is rubbish of a run that was killed."""
    return cache_dir() / "staging"


def views_dir() -> Path:
    """Folders of links into the hub's cache."""
    return cache_dir() / "views"


def answers_dir() -> Path:
    """What teachers have answered, one file for each of them."""
    return cache_dir() / "answers"


def encodings_dir() -> Path:
    """Encoded rows, one folder for each split of a run."""
    return cache_dir() / "encodings"


def trunks_dir() -> Path:
    """Hidden states of blocks that do not train, a folder for each model part."""
    return cache_dir() / "trunks"


def hub_cache_dir() -> Path:
    """The cache that all Hugging Face libraries share; the environment counts even if it changed after their import."""
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return Path(os.path.expandvars(chosen)).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(home)).expanduser() / "hub"
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Only one process at a time works on the entry `name`."""
    from filelock import FileLock, Timeout

    with writing():
        path = cache_dir() / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(f"waiting for another process that prepares {name}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staged(name: str) -> Iterator[Path]:
    """An empty folder beside the entries, gone afterwards unless it was moved away. Hold the lock of `name`."""
    folder = staging_dir() / name
    with writing():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writing() -> Iterator[None]:
    """A full disk or a forbidden folder becomes a message."""
    try:
        yield
    except OSError as problem:
        raise ArtifactError(
            f"cannot write to the cache '{cache_dir()}': {problem}; "
            "make room there, or set PEFTKIT_CACHE to another folder"
        ) from problem
