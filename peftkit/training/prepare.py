"""From a recipe to checked rows and features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftkit.data import ORIGIN, LoadedData
from peftkit.data.fingerprint import fingerprint
from peftkit.errors import DataError, RecipeError
from peftkit.models import base_config
from peftkit.recipe import Recipe
from peftkit.results import DataRecord
from peftkit.tasks import Encoded, Task
from peftkit.training.augmenting import augmented
from peftkit.training.data_check import LabelRule, RowRules, check_data, unread_rows
from peftkit.training.encoding import Encoder
from peftkit.training.scratch import architecture_config
from peftkit.training.taught_answers import with_taught_answers

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PreparedData:
    """Checked rows, and the features made of them.

    Args:
        task: with everything filled in that depends on the data.
        loaded: rows by split and where they came from.
        features: encoded rows by split.
        tokenizer: that they were encoded with.
        warnings: what the data check found that does not stop the run.
    """

    task: Task
    loaded: LoadedData
    features: Mapping[str, Dataset]
    tokenizer: PreTrainedTokenizerBase
    warnings: tuple[str, ...]

    def encoded(self, split: str) -> Encoded:
        """The rows of a split beside their features."""
        return Encoded(self.loaded.splits[split], self.features[split], self.tokenizer)

    def record(self) -> DataRecord:
        """The data's part of `run.json`."""
        splits = self.loaded.splits
        return DataRecord(
            source=self.loaded.source,
            artifacts=self.loaded.artifacts,
            rows={split: len(rows) for split, rows in splits.items()},
            fingerprint={split: fingerprint(rows) for split, rows in splits.items()},
            notes=self.loaded.notes,
            warnings=self.warnings,
        )

    def place(self, split: str, row: int) -> str:
        """A row in words: split, number, and file and line where known."""
        origin = self.origin(split, row)
        return f"{split} row {row}" + (f" ({origin})" if origin else "")

    def origin(self, split: str, row: int) -> str | None:
        """File and line of a row, where the source knows them."""
        rows = self.loaded.splits[split]
        return rows[row][ORIGIN] if ORIGIN in rows.column_names else None


def load_rows(recipe: Recipe) -> tuple[LoadedData, Task]:
    """The rows that a recipe names, and its task completed by them.

    Raises:
        DataError: rows that cannot be read, or lack what the task needs.
    """
    loaded = recipe.data.load()
    if "train" not in loaded.splits:
        raise DataError(
            f"{loaded.source} gives no split 'train' (it gives: {', '.join(loaded.splits)}); "
            "name the training rows in the recipe under  data"
        )
    if loaded.stream is not None:
        _check_stream(recipe)
    config = base_config(recipe.model) if recipe.model.architecture is None else architecture_config(recipe.model)
    return loaded, recipe.task.suited(config).resolved(loaded.splits)


def _check_stream(recipe: Recipe) -> None:
    if not recipe.task.streams:
        raise RecipeError(f"data: task {recipe.task.name!r} cannot learn from a stream of texts; use  data.name: files")
    if recipe.training.max_steps is None:
        raise RecipeError("training.max_steps: a stream of texts has no end; say how many steps to train")
    if recipe.training.batching != "random":
        raise RecipeError("training.batching: the lengths of a stream are not known before; remove it")
    if recipe.training.batch_tokens is not None:
        raise RecipeError("training.batch_tokens: the lengths of a stream are not known before; use batch_size")


def find_problems(loaded: LoadedData, encoder: Encoder) -> tuple[list[str], list[str]]:
    """What the data check says of the rows: errors, which forbid training, and warnings."""
    task = encoder.task
    columns = loaded.splits[next(iter(loaded.splits))].column_names
    texts = [column for column in task.text_columns if column in columns]

    rule = None
    if task.label_column is not None:
        rule = LabelRule(task.label_column, task.label_problem, task.class_of, one_per_input=not task.generates)
    findings = check_data(
        loaded.splits,
        RowRules(texts, rule, task.context_columns, task.row_problems),
        token_lengths=lambda rows: encoder.encode(rows).lengths,
        max_length=encoder.max_length,
    )
    errors = [finding.message for finding in findings if finding.severity == "error"]
    return errors, [finding.message for finding in findings if finding.severity == "warning"]


def prepare_data(recipe: Recipe, loaded: LoadedData, *, task: Task, tokenizer: PreTrainedTokenizerBase) -> PreparedData:
    """Check the rows of a recipe, augment those that train or let a teacher answer them, and encode all.

    Raises:
        DataError: rows that cannot be learnt from, all problems at once.
    """
    encoder = Encoder(task, tokenizer, max_length=recipe.model.max_length)
    errors, warnings = find_problems(loaded, encoder)
    if errors:
        raise DataError("\n  ".join([f"the data cannot be used ({loaded.source}):", *errors]))
    loaded = with_taught_answers(recipe, loaded, task=task)
    loaded = augmented(recipe, loaded, task=task)
    features = {}
    for split, rows in loaded.splits.items():
        features[split] = encoder.encode(rows).features
        if found := task.unread(Encoded(rows, features[split], tokenizer), recipe.model.max_length):
            warnings.append(unread_rows(split, rows, found))
    return PreparedData(task, loaded, features, tokenizer, tuple(warnings))


def check_metrics(recipe: Recipe, data: PreparedData) -> None:
    """Score the references against themselves, so that a metric that does not fit is found before training.

    Raises:
        DataError: a metric has no meaning for these labels.
        CapabilityError: a metric cannot be loaded here.
    """
    chosen = [metric for metric in recipe.metrics if metric.measures == "answers"]
    for split in data.features if chosen else ():
        if split != "train" or len(data.features) == 1:
            references = data.task.references(data.encoded(split))
            for metric in chosen:
                metric.check(references)


def _check_training(recipe: Recipe, task: Task) -> None:
    """Whether the task, now that it knows its data, can train as the recipe says."""
    training = recipe.training
    unfit = task.training_problem(
        batch_size=training.batch_size, accumulation_steps=training.accumulation_steps, batching=training.batching
    )
    if unfit is not None:
        key, problem = unfit
        raise RecipeError(f"training.{key} is {getattr(training, key)}: {problem}")


def completed(recipe: Recipe, data: PreparedData) -> Recipe:
    """The recipe with everything written out that was left to task, method and data.

    Raises:
        RecipeError: the loss does not fit the labels, or the task cannot work in micro-batches.
    """
    from peftkit.losses import losses
    from peftkit.metrics import metrics

    task = data.task
    _check_training(recipe, task)
    loss = recipe.loss or losses.build(task.default_loss)
    scores = recipe.metrics or tuple(metrics.build(name) for name in task.default_metrics)
    training = recipe.training.model_copy(
        update={
            "learning_rate": recipe.training.learning_rate or recipe.method.default_learning_rate,
            "best_metric": recipe.training.best_metric or scores[0].score_name,
        }
    )
    features = data.features["train"]
    labels = features["labels"] if "labels" in features.column_names else []
    return recipe.model_copy(
        update={
            "task": task,
            "loss": loss.fitted(labels, classes=len(task.label_names)),
            "metrics": scores,
            "training": training,
        }
    )
