"""Which rows of a source are used: equality filter, '#N' sampling, hash-based splits."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from peftkit.data import ORIGIN
from peftkit.data.columns import rows_at
from peftkit.data.fingerprint import row_digests
from peftkit.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_COUNT = re.compile(r"(?P<locator>.+)#(?P<count>[0-9]+)")


def split_count(locator: str) -> tuple[str, int | None]:
    """`reviews.csv#100` as `("reviews.csv", 100)`; without a count, None.

    Raises:
        DataError: a count of 0.
    """
    match = _COUNT.fullmatch(locator)
    if match is None:
        return locator, None
    if not int(match["count"]):
        raise DataError(f"{locator!r} asks for 0 rows; write #1 or more, or leave the split out")
    return match["locator"], int(match["count"])


class Selection(BaseModel):
    """Which rows are used; shared by every source that reads rows itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    where: Mapping[str, str | int | float | bool] = {}
    """Keep only the rows with these values: {source: rotten_tomatoes}. Comes before '#N' and hold_out."""
    sample_seed: int = 0
    """Which rows '#N' takes."""
    hold_out: Mapping[Literal["validation", "test"], Annotated[float, Field(gt=0, lt=1)]] = {}
    """Splits to take from train, with their share: {validation: 0.1}, met on average. A row's side depends on its
    content and split_seed alone: adding or reordering rows moves no other row, and equal rows stay together."""
    hold_out_by: tuple[str, ...] = ()
    """Columns that decide a row's side of hold_out; none: all. [article] keeps the rows of an article together."""
    split_seed: int = 0
    """Which rows hold_out takes."""

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if sum(self.hold_out.values()) >= 1:
            listed = ", ".join(f"{split}: {share}" for split, share in self.hold_out.items())
            raise ValueError(f"hold_out {{{listed}}} leaves nothing for train; the shares must add up to less than 1")
        return self

    def select(self, rows: Dataset, *, count: int | None, place: str) -> Dataset:
        """`rows` filtered, then sampled; in their old order.

        Args:
            place: file or split, for messages.

        Raises:
            DataError: no row matches, or fewer than `count` are there.
        """
        kept = self._filtered(rows, place) if self.where else rows
        if count is None:
            return kept
        if count > len(kept):
            after = " after where" if self.where else ""
            raise DataError(
                f"'#{count}' asks for {count} rows of {place}, which has {len(kept)}{after}; lower the number"
            )
        return sample(kept, count, seed=self.sample_seed)

    def _filtered(self, rows: Dataset, place: str) -> Dataset:
        _check_columns(rows, self.where, place=place, key="where")
        tables = {column: column_values(rows, column) for column in self.where}
        for column, wanted in self.where.items():
            if wanted not in tables[column]:
                present = sorted({repr(value) for value in tables[column]})
                listed = ", ".join(present[:10]) + (f" and {len(present) - 10} more" if len(present) > 10 else "")
                raise DataError(
                    f"no row of {place} has {wanted!r} in column {column!r} (it holds: {listed}); "
                    f"correct  data.where.{column}"
                )
        wanted_values = tuple(self.where.values())
        kept = [row for row, values in enumerate(zip(*tables.values(), strict=True)) if values == wanted_values]
        if not kept:
            raise DataError(f"no row of {place} meets all of  data.where {dict(self.where)}; leave a condition out")
        return rows_at(rows, kept)

    def with_held_out(self, splits: DatasetDict, *, place: str) -> DatasetDict:
        """`splits` with validation and test taken from train, as `hold_out` says.

        Raises:
            DataError: no train split, a split that is given too, a share that no row falls into.
        """
        from datasets import DatasetDict

        if not self.hold_out:
            return splits
        if "train" not in splits:
            raise DataError(
                f"{place} has no split 'train' (it has: {', '.join(splits)}), so hold_out has nothing to take from"
            )
        given = [split for split in self.hold_out if split in splits]
        if given:
            raise DataError(
                f"{place} has its own split {given[0]!r}; take it out of  data.hold_out  or leave that split out"
            )
        _check_columns(splits["train"], dict.fromkeys(self.hold_out_by), place=place, key="hold_out_by")
        sides = self._sides(splits["train"])
        for split, indices in sides.items():
            if not indices:
                raise DataError(
                    f"hold_out left no row for split {split!r} of {place} ({len(splits['train'])} rows in all); "
                    "raise its share, set another split_seed, or give more rows"
                )
        parts = {split: rows_at(splits["train"], indices) for split, indices in sides.items()}
        return DatasetDict({**parts, **{split: rows for split, rows in splits.items() if split != "train"}})

    def _sides(self, train: Dataset) -> dict[str, list[int]]:
        sides: dict[str, list[int]] = {"train": [], **{split: [] for split in self.hold_out}}
        for row, digest in enumerate(row_digests(train, columns=self.hold_out_by, seed=self.split_seed)):
            place = int.from_bytes(digest[:8]) / 2**64
            for split, share in self.hold_out.items():
                place -= share
                if place < 0:
                    sides[split].append(row)
                    break
            else:
                sides["train"].append(row)
        return sides


def sample(rows: Dataset, count: int, *, seed: int) -> Dataset:
    """`count` rows drawn without repetition, in their old order."""
    # Python promises the same random() for the same seed in every version, and that for no other method.
    draw = random.Random(seed).random
    keys = [draw() for _ in range(len(rows))]
    chosen = sorted(range(len(rows)), key=keys.__getitem__)[:count]
    return rows_at(rows, chosen)


def column_values(rows: Dataset, column: str) -> list[Any]:
    """All values of a column, as stored."""
    values: list[Any] = rows.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()
    return values


def _check_columns(rows: Dataset, wanted: Mapping[str, Any], *, place: str, key: str) -> None:
    for column in wanted:
        if column not in rows.column_names:
            listed = ", ".join(name for name in rows.column_names if name != ORIGIN)
            raise DataError(f"{place} has no column {column!r} (it has: {listed}); correct  data.{key}")
