"""The hub: its cache on this machine, and downloads from it."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from peftkit.artifacts.artifact import NotAvailableError
from peftkit.artifacts.digests import digest_over, file_sha256
from peftkit.artifacts.places import hub_cache_dir
from peftkit.artifacts.reachability import hub_endpoint, hub_problem
from peftkit.errors import ArtifactError


class FileChoice(Protocol):
    """Which files of a repository are wanted: `ModelFiles` or `DatasetFiles`."""

    def first(self) -> list[str]:
        """Files to fetch before `choose`."""

    def listing(self, folder: Path) -> list[str]:
        """The files of a local folder that may belong to it."""

    def choose(self, folder: Path, listing: Sequence[str]) -> list[str]:
        """The files to use of all those listed; raises ArtifactError if they cannot serve."""

    def missing(self, folder: Path, chosen: Iterable[str]) -> str | None:
        """What a folder lacks to be whole."""

    def damage(self, folder: Path, chosen: Iterable[str]) -> str | None:
        """What is wrong with the files."""


@dataclass(frozen=True)
class Repository:
    """A repository of the hub at a revision (branch, tag or commit; None for the newest)."""

    kind: Literal["model", "dataset"]
    id: str
    revision: str | None = None

    @property
    def page(self) -> str:
        """Its web page."""
        return f"{hub_endpoint()}/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"


@dataclass(frozen=True)
class Snapshot:
    """A repository's files in the hub's cache.

    Args:
        folder: holds the files, as links or copies.
        files: those to use, relative to `folder`.
        proven: whether it is certain that nothing is missing.
    """

    folder: Path
    files: tuple[str, ...]
    proven: bool

    @property
    def commit(self) -> str:
        """The commit hash."""
        return self.folder.name

    def digest(self) -> str:
        """One SHA-256 over the used files."""
        return digest_over({name: _sha256(self.folder / name) for name in self.files})


def cached_snapshot(repository: Repository, choice: FileChoice) -> Snapshot:
    """What an earlier download left in the hub's cache; the network is not touched.

    Raises:
        NotAvailableError: nothing is there, or something is missing.
        ArtifactError: a file is damaged, or the repository as listed cannot serve.
    """
    folder = _snapshot_folder(repository)
    listing = _listing(repository, folder.name)
    if listing is None:
        # Fetched by other means than snapshot_download: judged by the files that are there.
        try:
            chosen = choice.choose(folder, choice.listing(folder))
        except ArtifactError as problem:
            raise NotAvailableError(f"the copy in '{folder}' is incomplete: {problem}") from problem
    else:
        head = [name for name in choice.first() if name in listing]
        _check_present(folder, head)
        chosen = choice.choose(folder, listing)
        _check_present(folder, chosen)
    if missing := choice.missing(folder, chosen):
        raise NotAvailableError(f"the copy in '{folder}' is incomplete: {missing}")
    _check_sound(folder, chosen, choice)
    return Snapshot(folder, tuple(chosen), proven=listing is not None or repository.kind == "model")


def fetch_snapshot(repository: Repository, choice: FileChoice) -> Snapshot:
    """Download what is missing; a broken-off download goes on where it stopped.

    Raises:
        NotAvailableError: the hub cannot be reached, or does not hand the repository out.
        ArtifactError: the repository cannot serve, e.g. it has only pickle weights.
    """
    if problem := hub_problem():
        raise NotAvailableError(problem)
    from huggingface_hub import HfApi

    with _refusals(repository):
        # Asked first because snapshot_download hides some refusals behind "not in the cache".
        HfApi(endpoint=hub_endpoint()).repo_info(
            repository.id, repo_type=repository.kind, revision=repository.revision, timeout=10
        )
        folder = _download(repository, choice.first())
        listing = _listing(repository, folder.name) or []
        chosen = choice.choose(folder, listing)
        _download(Repository(repository.kind, repository.id, folder.name), chosen)
    if missing := choice.missing(folder, chosen):
        raise ArtifactError(f"'{repository.id}' on the hub is incomplete: {missing}; choose another revision or model")
    _check_sound(folder, chosen, choice)
    return Snapshot(folder, tuple(chosen), proven=True)


def _snapshot_folder(repository: Repository) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository.id,
            repo_type=repository.kind,
            revision=repository.revision,
            cache_dir=hub_cache_dir(),
            local_files_only=True,
            allow_patterns=[],  # completeness is judged by our own choice of files
        )
    except LocalEntryNotFoundError:
        raise NotAvailableError(f"'{hub_cache_dir()}' has no copy of it") from None
    return Path(folder)


def _listing(repository: Repository, commit: str) -> list[str] | None:
    """All files of the repository, as snapshot_download noted them; None if it has not."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(
            repository.id, repo_type=repository.kind, revision=commit, cache_dir=hub_cache_dir()
        )
    except CachedRepoTreeNotFoundError:
        return None
    return [file.path for file in tree]


def _check_present(folder: Path, names: Iterable[str]) -> None:
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise NotAvailableError(f"the copy in '{folder}' is incomplete: '{absent[0]}' is missing")


def _check_sound(folder: Path, names: Iterable[str], choice: FileChoice) -> None:
    if damage := choice.damage(folder, names):
        raise ArtifactError(f"{damage}; delete that file and run again to download it anew")


def _download(repository: Repository, names: Iterable[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            repository.id,
            repo_type=repository.kind,
            revision=repository.revision,
            cache_dir=hub_cache_dir(),
            endpoint=hub_endpoint(),
            allow_patterns=[glob.escape(name) for name in names],
            library_name="peftkit",
        )
    )


@contextmanager
def _refusals(repository: Repository) -> Iterator[None]:
    """Each way in which the hub can say no becomes its own message."""
    # HTTPError is taken from there because the HTTP client differs between versions of huggingface_hub.
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # imported there, not re-exported
        GatedRepoError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as problem:
        raise NotAvailableError(
            f"it is gated: accept its terms at {repository.page}, then log in with  hf auth login  or set HF_TOKEN"
        ) from problem
    except RepositoryNotFoundError as problem:
        raise NotAvailableError(
            f"there is no {repository.kind} at {repository.page} (HTTP {problem.response.status_code}): misspelt, "
            "deleted, or private; if private, log in with  hf auth login  or set HF_TOKEN"
        ) from problem
    except RevisionNotFoundError as problem:
        raise NotAvailableError(f"{repository.page} has no revision '{repository.revision}'") from problem
    except (HTTPError, OSError) as problem:
        first_line = str(problem).strip().partition("\n")[0]
        raise NotAvailableError(
            f"the download broke off ({type(problem).__name__}: {first_line}); "
            "running again fetches only the files that are missing"
        ) from problem


def _sha256(path: Path) -> str:
    """Digest of a file in the hub's cache, whose large files are named by it."""
    blob = path.resolve()
    named = blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name)
    return blob.name if named else file_sha256(path)
