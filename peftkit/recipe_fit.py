"""What forbids parts of a recipe beside each other, from the facts that they state of themselves."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from peftkit.losses import Loss
from peftkit.metrics import metrics
from peftkit.registry import closest
from peftkit.regularizers import Regularizer

if TYPE_CHECKING:
    from peftkit.recipe import Recipe


class Misfit(NamedTuple):
    """A part of a recipe that another forbids."""

    at: tuple[str, ...]
    problem: str
    """What is wrong, and what to do."""
    value: Any


def misfits(recipe: Recipe) -> Iterator[Misfit]:
    """All of them, those of the base first."""
    yield from _of_base(recipe)
    yield from _of_training(recipe)
    if recipe.loss is not None:
        yield from _of_targets(recipe, recipe.loss, at="loss")
    yield from _of_augmentations(recipe)
    for part in recipe.regularizers:
        yield from _of_targets(recipe, part, at="regularizers")
    for problem in _regularizer_problems(recipe):
        yield Misfit(("regularizers",), problem, [part.name for part in recipe.regularizers])
    yield from _of_distillation(recipe)
    yield from _of_metrics(recipe)


def _of_base(recipe: Recipe) -> Iterator[Misfit]:
    method, quantization, model = recipe.method, recipe.quantization, recipe.model
    if quantization is not None and method.trains_base_weights:
        yield Misfit(
            ("quantization",),
            f"method {method.name!r} trains the base weights, which {quantization.name} stores as integers; remove "
            "quantization, or choose a method that adds weights, such as lora",
            quantization.name,
        )
    if model.architecture is not None and not method.trains_base_weights:
        yield Misfit(
            ("method",),
            f"method {method.name!r} adds to weights that stay as they are, and those of model.architecture are "
            "random; use  method: full",
            method.name,
        )
    if quantization is not None and model.adapters:
        yield Misfit(
            ("model", "adapters"),
            f"{quantization.name} would round the adapters that are folded into the base; remove quantization",
            list(model.adapters),
        )


def _of_training(recipe: Recipe) -> Iterator[Misfit]:
    training = recipe.training
    if recipe.method.runs_to_the_end and training.early_stopping_patience is not None:
        yield Misfit(
            ("training", "early_stopping_patience"),
            f"method {recipe.method.name!r} reaches its final form with the last step only; remove it",
            training.early_stopping_patience,
        )
    if unfit := recipe.task.training_problem(
        batch_size=training.batch_size, accumulation_steps=training.accumulation_steps, batching=training.batching
    ):
        key, problem = unfit
        yield Misfit(("training", key), problem, getattr(training, key))
    if training.batch_tokens is not None and (why := _batch_tokens_problem(recipe, training.batch_tokens)):
        yield Misfit(("training", "batch_tokens"), why, training.batch_tokens)
    if training.micro_batch == "auto" and (why := _pieces_problem(recipe)):
        yield Misfit(("training", "micro_batch"), f"{why}; use whole", training.micro_batch)


def _batch_tokens_problem(recipe: Recipe, tokens: int) -> str | None:
    task, longest = recipe.task, recipe.model.max_length
    if tokens < longest:
        return (
            f"a row may have {longest} tokens (model.max_length), and a batch {tokens}; raise it to {longest} at least"
        )
    if task.engine is not None:
        return f"task {task.name!r} is trained by TRL, which makes its own batches; use batch_size"
    training = recipe.training
    if unfit := task.training_problem(
        batch_size=1, accumulation_steps=training.accumulation_steps, batching=training.batching
    ):
        return f"a batch may have a single row, and with task {task.name!r} {unfit[1]}; use batch_size"
    return None


def _pieces_problem(recipe: Recipe) -> str | None:
    """Why parts of a batch do not add up to it."""
    task = recipe.task
    if task.engine is not None:
        return f"task {task.name!r} is trained by TRL, which computes batches as they are"
    if unfit := task.training_problem(batch_size=1, accumulation_steps=2, batching=recipe.training.batching):
        return f"parts of a batch do not add up to it: with task {task.name!r} {unfit[1]}"
    joins = (part for part in recipe.regularizers if part.mixes_rows or part.moves_inputs or part.needs_label_per_text)
    if (part := next(joins, None)) is not None:
        return f"parts of a batch do not add up to it: {part.name!r} works on all of its rows together"
    return None


def _of_targets(recipe: Recipe, part: Loss | Regularizer, *, at: str) -> Iterator[Misfit]:
    if recipe.task.targets not in part.targets:
        yield Misfit(
            (at,),
            f"{part.name!r} works with {' or '.join(sorted(part.targets))}, and the labels of task "
            f"{recipe.task.name!r} are {recipe.task.targets}; remove it, or choose another",
            part.name,
        )


def _of_augmentations(recipe: Recipe) -> Iterator[Misfit]:
    if recipe.augmentations and not recipe.task.rewritable_columns:
        names = [part.name for part in recipe.augmentations]
        yield Misfit(
            ("augmentations",),
            f"{names[0]!r} puts texts in other words, and the answers of task {recipe.task.name!r} depend on the words "
            "as they stand; remove it",
            names,
        )


def _regularizer_problems(recipe: Recipe) -> Iterator[str]:
    method, task = recipe.method, recipe.task
    for one, other in combinations(recipe.regularizers, 2):
        if one.does and one.does == other.does:
            yield f"{one.name!r} and {other.name!r} both {one.does}; keep one of them"
    for part in recipe.regularizers:
        if part.averages_weights and method.runs_to_the_end:
            yield (
                f"{part.name!r} averages weights over steps, and method {method.name!r} drops some of them on its way, "
                "which an average would bring back; remove it, or choose another method, such as lora"
            )
        if part.needs_start_at_base and not method.starts_at_base:
            yield (
                f"{part.name!r} mixes weights with their start, which for method {method.name!r} is at random and not "
                "the base; remove it, or choose another method, such as full or lora"
            )
        if recipe.training.gradient_checkpointing and not part.allows_gradient_checkpointing:
            yield (
                f"{part.name!r} does not allow training.gradient_checkpointing: the recomputed pass would have other "
                "weights; turn it off, or remove it"
            )
        if part.needs_label_per_text and not task.one_label_per_text:
            yield (
                f"{part.name!r} needs one label per text, and those of task {task.name!r} do not belong to whole texts"
                "; remove it, or take it to sequence_classification"
            )


def _of_distillation(recipe: Recipe) -> Iterator[Misfit]:
    options, task = recipe.distillation, recipe.task
    if options is None:
        return
    if options.computes_teacher and (task.engine is not None or task.targets not in ("classes", "flags", "numbers")):
        yield Misfit(
            ("distillation",),
            f"task {task.name!r} compares something else than predictions of classes or numbers, so that no teacher's "
            "can be learnt; remove it, or choose another task",
            options.teacher,
        )
    if options.temperature is not None and task.targets == "numbers":
        yield Misfit(
            ("distillation", "temperature"),
            f"the labels of task {task.name!r} are numbers, which have no temperature; remove it",
            options.temperature,
        )
    if options.answers == "teacher" and not (task.generates and task.label_column):
        yield Misfit(
            ("distillation", "answers"),
            f"a teacher writes answers to the rows of text_generation, summarization and translation, not of task "
            f"{task.name!r}; remove it",
            options.answers,
        )
    if options.computes_teacher and (mixing := [part.name for part in recipe.regularizers if part.mixes_rows]):
        yield Misfit(
            ("distillation",),
            f"the teacher does not see the mixtures of rows that {mixing[0]!r} makes; remove one of them",
            options.teacher,
        )


def _of_metrics(recipe: Recipe) -> Iterator[Misfit]:
    scored = recipe.metrics or [metrics.build(name) for name in recipe.task.default_metrics]
    known = [metric.score_name for metric in scored]
    best = recipe.training.best_metric
    if twice := next((name for name in known if known.count(name) > 1), None):
        yield Misfit(("metrics",), f"two metrics give the score {twice!r}; keep one of them", known)
    if best is not None and best not in known:
        close = closest(best, known)
        hint = f"; did you mean {close!r}?" if close else ""
        problem = f"{best!r} is not among the metrics ({', '.join(known)}){hint}"
        yield Misfit(("training", "best_metric"), problem, best)
