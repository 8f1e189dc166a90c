"""Turn a locator into a local folder: what is local wins, then the caches, the hub, the mirrors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from peftkit.artifacts.artifact import Artifact, NotAvailableError
from peftkit.artifacts.dataset_files import DatasetFiles
from peftkit.artifacts.digests import digest_over, folder_sha256
from peftkit.artifacts.entries import Entry, find_entry
from peftkit.artifacts.gguf import locate_gguf
from peftkit.artifacts.hub import Repository, Snapshot, cached_snapshot, fetch_snapshot
from peftkit.artifacts.mirrored import fetch_mirror
from peftkit.artifacts.mirrors import Mirror, find_mirror, similar_id
from peftkit.artifacts.model_files import ModelFiles
from peftkit.artifacts.notices import tell
from peftkit.artifacts.reachability import hub_problem
from peftkit.artifacts.views import loadable_folder
from peftkit.errors import ArtifactError, CapabilityError
from peftkit.results import ArtifactRecord

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", flags=re.ASCII)


def locate_model(locator: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Artifact:
    """Config, tokenizer and safetensors weights of a model, in a local folder.

    Args:
        locator: an existing folder, a .gguf file, or a hub id (owner/name).
        revision: commit, tag or branch on the hub; not given: what the cache has, else the newest.
        trust_remote_code: also fetch the repository's Python files.

    Raises:
        ArtifactError: it cannot be had, is damaged, or could only be loaded by running code.
    """
    return _locate_model(locator, revision, ModelFiles(locator, code=trust_remote_code))


def locate_tokenizer(locator: str, *, revision: str | None = None) -> Artifact:
    """Config and tokenizer of a model; its weights are not downloaded where they can be left out.

    Raises:
        ArtifactError: they cannot be had, or the model could only be loaded by running code.
    """
    return _locate_model(locator, revision, ModelFiles(locator, weights=False))


def locate_dataset(locator: str, *, revision: str | None = None, config: str | None = None) -> Artifact:
    """The files of a data set, in a folder that `datasets.load_dataset(folder, name=config)` can read.

    Args:
        locator: an existing folder, or a hub id.
        revision: commit, tag or branch on the hub; not given: what the cache has, else the newest.
        config: one of its configurations; not given: its default.

    Raises:
        ArtifactError: it cannot be had, is damaged, or has no such configuration.
    """
    choice = DatasetFiles(locator, config)
    if (path := _local_path(locator)) is not None:
        if path.is_file():
            raise ArtifactError(
                f"'{locator}' is a file; load it with  data: {{name: files, train: {locator}}}  or give a folder"
            )
        return _local_folder(path, locator, choice)
    return _Search(Repository("dataset", _hub_id(locator, "dataset"), revision), choice).run()


def _locate_model(locator: str, revision: str | None, choice: ModelFiles) -> Artifact:
    if (path := _local_path(locator)) is not None:
        if path.is_dir():
            return _local_folder(path, locator, choice)
        if path.suffix.lower() != ".gguf":
            raise ArtifactError(f"'{locator}' is a file, but no .gguf file; give the folder that holds the model")
        return locate_gguf(path, locator)
    return _Search(Repository("model", _hub_id(locator, "model"), revision), choice).run()


def _local_path(locator: str) -> Path | None:
    """The existing file or folder that a locator names; None if it must be a hub id.

    Raises:
        ArtifactError: it looks like a path, but nothing is there.
    """
    path = Path(locator).expanduser()
    if locator and path.exists():
        return path.absolute()
    looks_like_path = locator.startswith((".", "~", "/", os.sep)) or locator.lower().endswith(".gguf")
    if looks_like_path or "\\" in locator or locator.count("/") > 1:
        siblings = [str(entry.name) for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        close = get_close_matches(path.name, siblings, n=1)
        hint = f"; did you mean '{path.parent / close[0]}'?" if close else "; correct the path"
        raise ArtifactError(f"there is no file or folder '{locator}' (looked for '{path.absolute()}'){hint}")
    return None


def _hub_id(locator: str, kind: str) -> str:
    if not _HUB_ID.fullmatch(locator) or "--" in locator or ".." in locator:
        raise ArtifactError(
            f"'{locator}' is neither an existing folder nor a hub id; write a path like ./folder, or owner/name, "
            f"e.g. {similar_id(kind, locator) or 'sentence-transformers/all-MiniLM-L6-v2'}"
        )
    return locator


def _local_folder(path: Path, locator: str, choice: ModelFiles | DatasetFiles) -> Artifact:
    chosen = choice.choose(path, choice.listing(path))
    if problem := choice.missing(path, chosen):
        raise ArtifactError(f"the folder '{locator}' is incomplete: {problem}; copy it again")
    if problem := choice.damage(path, chosen):
        raise ArtifactError(f"{problem}; copy it again")
    digest = digest_over(folder_sha256(path, chosen))
    return Artifact(path, ArtifactRecord(locator=locator, origin="local", sha256=digest))


@dataclass
class _Search:
    """One search for a hub id, place by place; `tried` collects why each place did not serve."""

    repository: Repository
    choice: ModelFiles | DatasetFiles
    tried: dict[str, str] = field(default_factory=dict)

    def run(self) -> Artifact:
        places: dict[str, Callable[[], Artifact]] = {
            "hub cache": self._hub_cache,
            "peftkit cache": self._own_cache,
            "hub": self._hub,
            "hub cache, unproven": self._unproven,
            "mirror": self._mirror,
        }
        for name, look in places.items():
            try:
                return look()
            except NotAvailableError as problem:
                self.tried[name] = str(problem)
        raise ArtifactError(self._report())

    def _hub_cache(self) -> Artifact:
        snapshot = cached_snapshot(self.repository, self.choice)
        if not snapshot.proven:
            raise NotAvailableError(f"the copy in '{snapshot.folder}' may be incomplete")
        return self._from_snapshot(snapshot)

    def _own_cache(self) -> Artifact:
        entry = find_entry(self._usable_mirror().entry_name)
        if entry is None:
            raise NotAvailableError("its mirror has not been fetched yet")
        return self._from_entry(entry)

    def _hub(self) -> Artifact:
        return self._from_snapshot(fetch_snapshot(self.repository, self.choice))

    def _unproven(self) -> Artifact:
        """A data set that other programs fetched file by file: better than nothing, once the hub cannot be asked."""
        snapshot = cached_snapshot(self.repository, self.choice)
        note = "taken from the hub's cache as it is; whether files are missing could not be checked"
        return self._from_snapshot(snapshot, note=note)

    def _mirror(self) -> Artifact:
        mirror = self._usable_mirror()
        tell(f"{self.repository.id} is not to be had from the hub: {self.tried['hub']}")
        tell(f"using its mirror instead: {mirror.note}")
        try:
            entry = fetch_mirror(mirror)
        except (ArtifactError, CapabilityError) as problem:
            raise NotAvailableError(str(problem)) from problem
        found = self._from_entry(entry)
        if hub_problem() is not None:
            return found
        note = f"{found.record.note}; the hub itself did not serve it: {self.tried['hub']}"
        return Artifact(found.path, found.record.model_copy(update={"note": note}))

    def _usable_mirror(self) -> Mirror:
        repository = self.repository
        mirror = find_mirror(repository.kind, repository.id)
        if mirror is None:
            similar = similar_id(repository.kind, repository.id)
            raise NotAvailableError("there is none" + (f"; did you mean '{similar}'?" if similar else ""))
        if not mirror.serves(repository.revision):
            raise NotAvailableError(
                f"there is one ({mirror.wheel.requirement}), but it is not known to be revision "
                f"'{repository.revision}', so it is not used; leave the revision out to accept it"
            )
        return mirror

    def _from_entry(self, entry: Entry) -> Artifact:
        if isinstance(self.choice, ModelFiles):
            needed = self.choice.choose(entry.content, list(entry.manifest.files))
            return entry.artifact(self.repository.id, names=needed)
        found = entry.artifact(self.repository.id)  # verified before `choose` reads the card
        self.choice.choose(entry.content, list(entry.manifest.files))
        return found

    def _from_snapshot(self, snapshot: Snapshot, *, note: str | None = None) -> Artifact:
        path = loadable_folder(snapshot, self.choice) if isinstance(self.choice, DatasetFiles) else snapshot.folder
        record = ArtifactRecord(
            locator=self.repository.id, origin="hub", revision=snapshot.commit, sha256=snapshot.digest(), note=note
        )
        return Artifact(path, record)

    def _report(self) -> str:
        kind = self.repository.kind
        at = f" at revision '{self.repository.revision}'" if self.repository.revision else ""
        shown = {place: why for place, why in self.tried.items() if place in ("hub cache", "hub", "mirror")}
        lines = "".join(f"\n  - {place}: {why}" for place, why in shown.items())
        return (
            f"cannot get the {kind} '{self.repository.id}'{at}:{lines}\n"
            f"check the id, go online, or give a local {kind} folder instead of the id"
        )
