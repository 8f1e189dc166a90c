"""Local files: CSV, TSV, JSON, JSON Lines, Parquet, text; packed with gzip or not."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from peftkit.data import DataSource, LoadedData, MissingFilesError, sources
from peftkit.data.reading import ReadingOptions
from peftkit.data.split_files import FileContent, SplitFiles, described, load_split_files
from peftkit.data.splitting import Selection
from peftkit.errors import DataError


@sources.register("files")
class Files(SplitFiles, ReadingOptions, Selection, DataSource):
    """Rows of local files; paths are relative to the working directory."""

    def read(self) -> LoadedData:
        """All splits; each row knows its file and line.

        Raises:
            DataError: a file that is missing or cannot be read, with file and line.
        """
        locators = self.locators()
        splits, records = load_split_files(locators, find_files, reading=self, selection=self)
        return LoadedData(splits, described("files", locators), records)


def find_files(pattern: str) -> Sequence[FileContent]:
    """The files of a path or glob pattern, sorted by name.

    Raises:
        MissingFilesError: nothing is there.
        DataError: a folder where a file is expected.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        raise DataError(f"'{pattern}' is a folder; name its files, e.g.  {pattern.rstrip('/')}/*.csv")
    if path.is_file():
        found = [path]
    else:
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
    if not found:
        if glob.has_magic(pattern):
            raise MissingFilesError(f"no file matches '{pattern}' (in '{Path.cwd()}'); correct the pattern")
        raise MissingFilesError(f"no file '{pattern}' (in '{Path.cwd()}'); correct the path")
    return [FileContent(_shown(file), partial(_bytes_of, file)) for file in found]


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise DataError(f"'{path}' cannot be read ({problem.strerror}); check its permissions") from problem


def _shown(path: Path) -> str:
    """The path as the user would write it from the working directory."""
    working_directory = Path.cwd()
    return str(path.relative_to(working_directory) if path.is_relative_to(working_directory) else path)
