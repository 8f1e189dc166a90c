"""Several sources as one, the training rows in given proportions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from peftkit.data import ORIGIN, DataSource, LoadedData, sources
from peftkit.data.columns import concatenate
from peftkit.data.splitting import sample
from peftkit.errors import DataError
from peftkit.registry import From

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

NamedSource = Annotated[DataSource, From(sources)]


@sources.register("mixture")
class Mixture(DataSource):
    """Several sources as one: train in proportion to the weights, every other split whole; sources in order."""

    sources: tuple[NamedSource, ...] = Field(min_length=1)
    """The sources, each with its own columns mapping; afterwards all need the same columns."""
    weights: tuple[PositiveFloat, ...] | None = None
    """Share of each source in train; [3, 1] is 75 % and 25 %. Not given: in proportion to their sizes."""
    rows: PositiveInt | None = None
    """Rows of train. Not given: as many as the weights allow without repeating a row."""
    sample_seed: int = 0
    """Which rows a source that gives only a part gives."""
    keep: tuple[str, ...] | None = None
    """Columns to keep, where the sources have others besides. Not given: all."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.sources):
            raise ValueError(f"{len(self.weights)} weights for {len(self.sources)} sources; give one weight per source")
        return self

    def read(self) -> LoadedData:
        """All splits, mixed.

        Raises:
            DataError: sources whose columns or types differ, or too few rows.
            ArtifactError: a source that cannot be had.
        """
        from datasets import DatasetDict

        loaded = [source.load() for source in self.sources]
        names = [f"source {place} ({part.source})" for place, part in enumerate(loaded)]
        kept = [self._kept(part.splits, name) for part, name in zip(loaded, names, strict=True)]
        mixed = DatasetDict()
        for split in dict.fromkeys(split for part in kept for split in part):
            parts = [(name, part[split]) for name, part in zip(names, kept, strict=True) if split in part]
            mixed[split] = concatenate(self._weighted(parts, names) if split == "train" else parts)
        return LoadedData(
            mixed,
            f"mixture of {'; '.join(part.source for part in loaded)}",
            tuple(record for part in loaded for record in part.artifacts),
            tuple(note for part in loaded for note in part.notes),
        )

    def _kept(self, splits: DatasetDict, name: str) -> DatasetDict:
        from datasets import DatasetDict

        if self.keep is None:
            return splits
        kept = DatasetDict()
        for split, rows in splits.items():
            missing = [column for column in self.keep if column not in rows.column_names]
            if missing:
                listed = ", ".join(column for column in rows.column_names if column != ORIGIN)
                raise DataError(
                    f"split {split!r} of {name} has no column {missing[0]!r} (it has: {listed}); correct  data.keep"
                )
            kept[split] = rows.select_columns([*self.keep, *({ORIGIN} & set(rows.column_names))])
        return kept

    def _weighted(self, parts: Sequence[tuple[str, Dataset]], names: Sequence[str]) -> list[tuple[str, Dataset]]:
        if self.weights is not None and len(parts) != len(names):
            without = next(name for name in names if name not in dict(parts))
            raise DataError(f"{without} has a weight but no split 'train'; leave it out of the mixture or give it one")
        sizes = [len(rows) for _, rows in parts]
        weights = self.weights or tuple(float(size) for size in sizes)
        counts = shares_of(self.rows or largest_total(sizes, weights), weights)
        for (name, _), count, size in zip(parts, counts, sizes, strict=True):
            if count > size:
                raise DataError(
                    f"{self.rows} rows need {count} from {name}, which has {size}; lower  data.rows  or its weight"
                )
        return [
            (name, rows if count == size else sample(rows, count, seed=self.sample_seed))
            for (name, rows), count, size in zip(parts, counts, sizes, strict=True)
        ]


def largest_total(sizes: Sequence[int], weights: Sequence[float]) -> int:
    """The largest number of rows whose exact shares ask no source for more rows than it has."""
    exact = _fractions(weights)
    return int(min(size * sum(exact) / weight for size, weight in zip(sizes, exact, strict=True)))


def shares_of(total: int, weights: Sequence[float]) -> list[int]:
    """`total` in whole parts proportional to `weights`, by largest remainder; ties go to the earlier part."""
    exact = _fractions(weights)
    shares = [total * weight / sum(exact) for weight in exact]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda place: counts[place] - shares[place])
    for place in by_remainder[: total - sum(counts)]:
        counts[place] += 1
    return counts


def _fractions(weights: Sequence[float]) -> list[Fraction]:
    """The weights as written: 0.1 is a tenth, which the float is not, and a row more or less depends on it."""
    return [Fraction(repr(weight)) for weight in weights]
