"""Data sets of the Hugging Face hub, by id or from a local copy of their repository."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from peftkit.data import DataSource, LoadedData, sources
from peftkit.data.progress_bars import hidden_progress_bars
from peftkit.data.splitting import Selection, split_count
from peftkit.errors import ArtifactError, DataError

if TYPE_CHECKING:
    from datasets import DatasetDict


@sources.register("hub")
class Hub(Selection, DataSource):
    """A data set of the Hugging Face hub."""

    id: str = Field(min_length=1)
    """Its id (owner/name), or a folder with a copy of it."""
    config: str | None = None
    """Which of its configurations, e.g. sst2 of glue."""
    revision: str | None = None
    """Commit, tag or branch; a commit makes runs repeatable."""
    splits: Mapping[str, str] | None = None
    """Our split -> its split, with '#N' for N random rows: {train: "train#8000", test: validation}. Not given: all."""

    def read(self) -> LoadedData:
        """The chosen splits.

        Raises:
            ArtifactError: the data set cannot be had.
            DataError: it cannot be read, or lacks a split.
        """
        from peftkit.artifacts import locate_dataset

        try:
            artifact = locate_dataset(self.id, revision=self.revision, config=self.config)
        except ArtifactError as problem:
            raise ArtifactError(
                f"{problem}; or give local files instead:  --set 'data={{name: files, train: ..., test: ...}}'"
            ) from problem
        place = f"hub data set {self.id!r}" + (f" ({self.config})" if self.config else "")
        present = self._load(artifact.path, place)
        chosen = self._chosen(present, place)
        return LoadedData(self.with_held_out(chosen, place=place), place, (artifact.record,))

    def _load(self, path: Path, place: str) -> DatasetDict:
        import datasets

        saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
        try:
            with hidden_progress_bars():
                loaded = (
                    datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path), name=self.config)
                )
        # What datasets raises for missing, foreign and broken files; RuntimeError stands for loading scripts.
        except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError, KeyError) as problem:
            cause = problem.__cause__ or problem
            reason = f"{type(cause).__name__}: {str(cause).strip()}"
            raise DataError(f"{place} cannot be read ({reason}); check  data.config  and  data.revision") from cause
        return loaded if isinstance(loaded, datasets.DatasetDict) else datasets.DatasetDict(train=loaded)

    def _chosen(self, present: DatasetDict, place: str) -> DatasetDict:
        from datasets import DatasetDict

        chosen = DatasetDict()
        for split, locator in (self.splits or {name: name for name in present}).items():
            wanted, count = split_count(locator)
            if wanted not in present:
                raise DataError(
                    f"{place} has no split {wanted!r} (it has: {', '.join(present)}); correct  data.splits.{split}"
                )
            chosen[split] = self.select(present[wanted], count=count, place=f"split {wanted!r} of {place}")
        return chosen
