"""What forbids parts of a recipe beside each other, from the facts that they state of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from peftkit.augmentations import Augmentation
from peftkit.methods import TuningMethod
from peftkit.regularizers import Regularizer
from peftkit.tasks import Task


def regularizers_problem(
    parts: Sequence[Regularizer], *, task: Task, method: TuningMethod, gradient_checkpointing: bool
) -> str | None:
    """The first thing that forbids a regularizer, with what to do; None if they all fit."""
    for one, other in combinations(parts, 2):
        if one.does and one.does == other.does:
            return f"{one.name!r} and {other.name!r} both {one.does}; keep one of them"
    for part in parts:
        if part.averages_weights and method.runs_to_the_end:
            return (
                f"{part.name!r} averages weights over steps, and method {method.name!r} drops some of them on its way, "
                "which an average would bring back; remove it, or choose another method, such as lora"
            )
        if part.needs_start_at_base and not method.starts_at_base:
            return (
                f"{part.name!r} mixes weights with their start, which for method {method.name!r} is at random and not "
                "the base; remove it, or choose another method, such as full or lora"
            )
        if gradient_checkpointing and not part.allows_gradient_checkpointing:
            return (
                f"{part.name!r} does not allow training.gradient_checkpointing: the recomputed pass would have other "
                "weights; turn it off, or remove it"
            )
        if part.mixes_rows and not task.one_label_per_text:
            return (
                f"{part.name!r} mixes rows with their labels, and those of task {task.name!r} do not belong to whole "
                "texts; remove it, or take it to sequence_classification"
            )
    return None


def augmentations_problem(parts: Sequence[Augmentation], *, task: Task) -> str | None:
    """Why no augmentation fits the task, with what to do; None if they do, or there are none."""
    if not parts or task.rewritable_columns:
        return None
    return (
        f"{parts[0].name!r} puts texts in other words, and the answers of task {task.name!r} depend on the words as "
        "they stand; remove it"
    )
