"""Which files of a data set's repository make one of its configurations."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from peftkit.artifacts.digests import files_below
from peftkit.errors import ArtifactError

CARD_FILE = "README.md"
_DATA_SUFFIXES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt", ".gz", ".zst"})
_SHARD = re.compile(r"(.*-)(\d{5})-of-(\d{5}).*")


@dataclass(frozen=True)
class DatasetFiles:
    """Chooses the data files of one configuration, as the data set's card declares them.

    Args:
        locator: what the user asked for, for messages.
        config: the configuration; None for the default one.
    """

    locator: str
    config: str | None = None

    def first(self) -> list[str]:
        """Files that must be at hand before `choose`: the card, with the list of configurations."""
        return [CARD_FILE, ".gitattributes"]  # nearly every repository has the second: an empty choice is warned about

    def listing(self, folder: Path) -> list[str]:
        """The files of a local folder that may belong to it."""
        return files_below(folder)

    def choose(self, folder: Path, listing: Sequence[str]) -> list[str]:
        """The files to use of all those listed; `folder` holds the card, if there is one.

        Raises:
            ArtifactError: there is no such configuration, or no data file.
        """
        data = [name for name in listing if PurePosixPath(name).suffix in _DATA_SUFFIXES]
        if not data:
            raise ArtifactError(self._without_data(listing))
        card = [CARD_FILE] if CARD_FILE in listing else []
        configs = read_card(folder).get("configs") or []
        if not configs:
            if self.config not in (None, "default"):
                raise ArtifactError(
                    f"data set '{self.locator}' has no configurations, so none called '{self.config}'; "
                    "leave  data.config  out"
                )
            return sorted({*card, *data})
        chosen: set[str] = set()
        for pattern in _patterns(self.chosen_config(configs)):
            matched = [name for name in data if _matches(name, pattern)]
            if not matched:
                raise ArtifactError(
                    f"the card of data set '{self.locator}' names '{pattern}', which is not among its files"
                )
            chosen.update(matched)
        return sorted({*card, *chosen})

    def chosen_config(self, configs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """The asked configuration among those of the card.

        Raises:
            ArtifactError: there is none of that name, or none was asked for and there is no default.
        """
        names = [str(config.get("config_name", "default")) for config in configs]
        if self.config is not None:
            if self.config not in names:
                raise ArtifactError(
                    f"data set '{self.locator}' has no configuration '{self.config}' (it has: {', '.join(names)}); "
                    "correct  data.config"
                )
            return configs[names.index(self.config)]
        if len(configs) == 1:
            return configs[0]
        marked = [config for config in configs if config.get("default") is True]
        if marked:
            return marked[0]
        if "default" in names:
            return configs[names.index("default")]
        raise ArtifactError(
            f"data set '{self.locator}' has several configurations ({', '.join(names)}); choose one with  data.config"
        )

    def missing(self, folder: Path, chosen: Iterable[str]) -> str | None:
        """What a folder lacks to be whole, as far as its own file names tell; None if nothing."""
        numbers: dict[tuple[str, int], set[int]] = {}
        for name in chosen:
            if shard := _SHARD.fullmatch(name):
                numbers.setdefault((shard[1], int(shard[3])), set()).add(int(shard[2]))
        for (start, total), present in sorted(numbers.items()):
            if absent := set(range(total)) - present:
                return f"the data file '{start}{min(absent):05d}-of-{total:05d}...' is missing"
        return None

    def damage(self, folder: Path, chosen: Iterable[str]) -> str | None:
        """What is wrong with the files; only Parquet says at its end whether it is whole."""
        for name in chosen:
            path = folder / name
            if path.suffix == ".parquet" and not _ends_like_parquet(path):
                return f"'{path.resolve()}' is damaged: it is not a whole Parquet file ({path.stat().st_size} bytes)"
        return None

    def _without_data(self, listing: Sequence[str]) -> str:
        if scripts := [name for name in listing if name.endswith(".py")]:
            return (
                f"data set '{self.locator}' has only a loading script ({scripts[0]}), which would run foreign code; "
                "try the Parquet files that the hub makes of it: data.revision: refs/convert/parquet"
            )
        present = ", ".join(sorted(listing)[:8]) or "nothing"
        return f"'{self.locator}' has no data files (csv, tsv, json, jsonl, parquet, txt); it has: {present}"


def read_card(folder: Path) -> dict[str, Any]:
    """The YAML at the top of the card, empty if there is none.

    Raises:
        ArtifactError: it is not valid.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        return {}
    match = re.match(r"\s*---\s*\r?\n(.*?)\r?\n---", path.read_text("utf-8", errors="replace"), flags=re.DOTALL)
    try:
        card = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as problem:
        raise ArtifactError(
            f"the head of '{path}' is not valid YAML ({problem}); repair the data set's card"
        ) from problem
    return card if isinstance(card, dict) else {}


def _patterns(config: Mapping[str, Any]) -> list[str]:
    """The path patterns of a configuration, in any of the forms that cards use."""
    found = config.get("data_files")
    if found is None:
        return [f"{config['data_dir'].strip('/')}/**"] if config.get("data_dir") else ["**"]
    if isinstance(found, str):
        parts: list[Any] = [found]
    elif isinstance(found, Mapping):
        parts = list(found.values())
    else:
        parts = [part["path"] if isinstance(part, Mapping) else part for part in found]
    return [str(path) for part in parts for path in (part if isinstance(part, list) else [part])]


def _matches(name: str, pattern: str) -> bool:
    """Whether a path fits a glob pattern; '**/' may also stand for no folder at all."""
    pattern = pattern.removeprefix("./").lstrip("/")
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern.replace("**/", ""))


def _ends_like_parquet(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(max(path.stat().st_size - 4, 0))
        return stream.read() == b"PAR1"
