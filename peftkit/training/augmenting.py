"""Rewritten copies of the training rows, beside the rows themselves."""

from __future__ import annotations

from dataclasses import replace

from datasets import Dataset, DatasetDict, concatenate_datasets

from peftkit.augmentations import Augmentation, Rewriting
from peftkit.data import ORIGIN, LoadedData
from peftkit.recipe import Recipe
from peftkit.tasks import Task


def augmented(recipe: Recipe, loaded: LoadedData, *, task: Task) -> LoadedData:
    """The rows with what the recipe's augmentations add to the training rows, and notes that tell how much that is.

    Every augmentation rewrites the rows as they were loaded. A copy that came out as its row is left out.
    """
    if not recipe.augmentations:
        return loaded
    rows = loaded.splits["train"]
    columns = [column for column in task.rewritable_columns if column in rows.column_names]
    parts, notes = [rows], list(loaded.notes)
    for place, augmentation in enumerate(recipe.augmentations):
        seeds = [f"{place}/{number}" for number in range(augmentation.copies)]
        copies = [_copy(augmentation, rows, columns, seed=seed, recipe=recipe) for seed in seeds]
        parts += copies
        added = sum(map(len, copies))
        left_out = augmentation.copies * len(rows) - added
        left = f"; {left_out} copies came out as their row and were left out" if left_out else ""
        notes.append(f"{augmentation.name} added {added} rewritten rows to the {len(rows)} training rows{left}")
    splits = DatasetDict({**loaded.splits, "train": concatenate_datasets(parts)})
    return replace(loaded, splits=splits, notes=tuple(notes))


def most_rows(recipe: Recipe, rows: int) -> int:
    """How many training rows there are at most when so many have been augmented."""
    return rows * (1 + sum(augmentation.copies for augmentation in recipe.augmentations))


def _copy(augmentation: Augmentation, rows: Dataset, columns: list[str], *, seed: str, recipe: Recipe) -> Dataset:
    """The rows that come out rewritten."""
    rewritten = {}
    for column in columns:
        rewriting = Rewriting(f"{recipe.seed}/{seed}/{column}", recipe.model.locator, recipe.model.revision)
        rewritten[column] = augmentation.rewrite([str(text) for text in rows[column]], rewriting)
    before = list(zip(*(map(str, rows[column]) for column in columns), strict=True))
    after = list(zip(*rewritten.values(), strict=True))
    changed = [row for row in range(len(rows)) if before[row] != after[row]]
    copy = rows.select(changed)
    new = {column: [rewritten[column][row] for row in changed] for column in columns}
    if ORIGIN in rows.column_names:
        new[ORIGIN] = [f"{origin}, {augmentation.name}" for origin in copy[ORIGIN]]
    for column, values in new.items():
        copy = copy.remove_columns(column).add_column(column, values, feature=rows.features[column])
    return copy.select_columns(rows.column_names)
