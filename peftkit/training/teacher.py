"""The teacher of a distillation: a finished run, or a model that was trained for the task; and whether it can teach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from peftkit.artifacts import locate_model
from peftkit.artifacts.digests import digest_over
from peftkit.data.progress_bars import hidden_progress_bars
from peftkit.errors import ArtifactError, CapabilityError, RecipeError
from peftkit.heads import unstored
from peftkit.layers.blocks import block_lists
from peftkit.models import (
    ADAPTER_DIR,
    MODEL_DIR,
    base_config,
    load_model,
    load_tuned,
    on_device,
    skeleton,
    storage_of,
)
from peftkit.positions import positions_of
from peftkit.recipe import ModelSpec, Recipe
from peftkit.results import PIPELINE_FILE, RUN_FILE, read_result
from peftkit.storage import Storage
from peftkit.tasks import ROW, Task

if TYPE_CHECKING:
    from datasets import Dataset

_PROBE_ROWS = 64
_KEY = "distillation.teacher"


@dataclass(frozen=True)
class Teacher:
    """A teacher without its weights.

    Args:
        title: as the recipe names it.
        spec: its base, or the whole model.
        task: that it was trained on.
        tokenizer: its own.
        run_dir: of the run that has left it; None: it is a model by itself.
        recipe: of that run.
        dtype: of its unquantized weights.
        files: of that run, digest over them.
    """

    title: str
    spec: ModelSpec
    task: Task
    tokenizer: PreTrainedTokenizerBase
    run_dir: Path | None = None
    recipe: Recipe | None = None
    dtype: torch.dtype = torch.float32
    files: str = ""

    @classmethod
    def find(cls, recipe: Recipe, task: Task) -> Teacher:
        """The teacher that a recipe names; `task` is the student's, resolved.

        Raises:
            RunError: it is the folder of a run that is not finished.
            RecipeError: it was trained for something else.
        """
        options = recipe.distillation
        assert options is not None  # asked by recipes only that have a teacher
        name = options.teacher
        folder = Path(name)
        if (folder.is_dir() and not (folder / "config.json").is_file()) or (folder / PIPELINE_FILE).is_file():
            teacher = cls._of_run(name, folder)
        else:
            teacher = cls._of_model(name, recipe, task)
        if options.computes_teacher:
            _check_task(teacher, task)
        if options.answers == "teacher":
            _check_columns(teacher, task)
        return teacher

    @classmethod
    def _of_run(cls, name: str, folder: Path) -> Teacher:
        folder, result = read_result(folder)
        recipe = Recipe.from_values(result.recipe, origin=str(folder / RUN_FILE))
        whole = (folder / MODEL_DIR).is_dir()
        spec = recipe.model.tuned(folder / MODEL_DIR) if whole else recipe.model
        tokenizer = AutoTokenizer.from_pretrained(folder / (MODEL_DIR if whole else ADAPTER_DIR))
        recipe = recipe.model_copy(update={"model": spec})
        dtype = getattr(torch, result.model.dtype)
        return cls(name, spec, recipe.task, tokenizer, folder, recipe, dtype, digest_over(result.files))

    @classmethod
    def _of_model(cls, name: str, recipe: Recipe, task: Task) -> Teacher:
        spec = ModelSpec(id=name, max_length=recipe.model.max_length)
        try:
            config = base_config(spec)
        except ArtifactError as problem:
            raise ArtifactError(f"{_KEY}: '{name}' is no folder of a run, and no model: {problem}") from problem
        bare = skeleton(spec, task.head())
        untrained = sorted(unstored(bare.model, config)) if config.architectures else ["every weight of its head"]
        if untrained:
            raise CapabilityError(
                f"{_KEY}: '{name}' was not trained for task {task.name!r} (it lacks {untrained[0]}), so that it has "
                "nothing to teach; name a run, or a model with a trained head"
            )
        if task.head().is_new:
            _check_labels(name, list(config.id2label.values()), task)
        return cls(name, spec, task, bare.tokenizer)

    @property
    def identity(self) -> str:
        """Tells teachers with other weights apart."""
        base = locate_model(self.spec.locator, revision=self.spec.revision).record.sha256
        return f"{base} {self.spec.title} {self.files}"

    def bare(self) -> PreTrainedModel:
        """Its modules and shapes, on the meta device."""
        return skeleton(self.spec, self.task.head()).model

    def load(self, device: str) -> PreTrainedModel:
        """It, in evaluation mode; draws nothing from the run's random numbers."""
        head = self.task.head()
        with torch.random.fork_rng():
            if self.run_dir is None or self.recipe is None:
                loaded = load_model(self.spec, head, storage=Storage(self.dtype, device=device))
            else:
                storage = storage_of(self.recipe, head, dtype=self.dtype, device=device)
                loaded = load_tuned(self.run_dir, self.spec, head, storage=storage)
        return on_device(loaded.model, device).eval().requires_grad_(False)


def check_teacher(recipe: Recipe, task: Task, tokenizer: PreTrainedTokenizerBase, *, rows: Dataset) -> None:
    """Hold the teacher of a recipe, if it has one, against the student and its rows; no weights are read.

    Args:
        task: resolved.

    Raises:
        PeftkitError: it cannot be had, or it cannot teach this student.
    """
    options = recipe.distillation
    if options is None:
        return
    teacher = Teacher.find(recipe, task)
    if options.computes_teacher:
        left_out_columns(teacher, recipe.model_copy(update={"task": task}), tokenizer, rows=rows)
        limit = positions_of(teacher.bare())
        if limit is not None and limit < recipe.model.max_length:
            raise RecipeError(
                f"model.max_length is {recipe.model.max_length}, and the teacher '{teacher.title}' reads at most "
                f"{limit} tokens; lower it to {limit}"
            )
    if options.hidden_states is not None:
        layer_pairs(options.hidden_states.layers, skeleton(recipe.model, task.head()).model, teacher.bare())


def _check_task(teacher: Teacher, task: Task) -> None:
    theirs, ours = teacher.task.head(), task.head()
    if theirs.auto_class != ours.auto_class or teacher.task.targets != task.targets:
        raise RecipeError(
            f"{_KEY}: '{teacher.title}' was trained on task {teacher.task.name!r} ({theirs.auto_class}, "
            f"{teacher.task.targets}), and this one is {task.name!r} ({ours.auto_class}, {task.targets}); name a "
            "teacher of the same task"
        )
    _check_labels(teacher.title, list(theirs.config.get("id2label", {}).values()), task)


def _check_columns(teacher: Teacher, task: Task) -> None:
    theirs, ours = ((one.text_columns, one.label_column) for one in (teacher.task, task))
    if theirs != ours:
        raise RecipeError(
            f"{_KEY}: '{teacher.title}' was trained on task {teacher.task.name!r}, and the answers are wanted for "
            f"{task.name!r}; name a teacher of the same task"
        )


def _check_labels(teacher: str, theirs: list[str], task: Task) -> None:
    ours = list(task.head().config.get("id2label", {}).values())
    if task.targets == "numbers":
        if len(theirs) != 1:
            raise RecipeError(f"{_KEY}: '{teacher}' has {len(theirs)} labels, and this task has a number; name another")
        return
    if not ours or theirs == ours:
        return
    wanted = f"give them in its order:  task.labels: [{', '.join(map(str, theirs))}]"
    if sorted(map(str, theirs)) != sorted(map(str, ours)):
        wanted = "name a teacher that has the same labels"
    raise RecipeError(
        f"{_KEY}: '{teacher}' has the labels {', '.join(map(str, theirs))}, and this task has "
        f"{', '.join(map(str, ours))}; {wanted}"
    )


def left_out_columns(
    teacher: Teacher, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, rows: Dataset
) -> frozenset[str]:
    """What of a batch the teacher does not take, such as token_type_ids.

    Raises:
        RecipeError: it reads the same text otherwise than the student.
    """
    _check_vocabulary(teacher, tokenizer)
    probe = rows.select(range(min(_PROBE_ROWS, len(rows))))
    with hidden_progress_bars():
        ours, theirs = (
            recipe.task.encode(probe, reader, recipe.model.max_length).to_dict()
            for reader in (tokenizer, teacher.tokenizer)
        )
    for column in theirs:
        told = ours.get(column) == theirs[column] if column in ours else not any(map(any, theirs[column]))
        if not told:
            raise RecipeError(
                f"{_KEY}: '{teacher.title}' reads the training texts otherwise than '{recipe.model.title}' (its "
                f"{column} differ); name a teacher with the same tokenizer"
            )
    return frozenset(ours) - frozenset(theirs) - {ROW}


def _check_vocabulary(teacher: Teacher, tokenizer: PreTrainedTokenizerBase) -> None:
    theirs, ours = _tokens(teacher.tokenizer), _tokens(tokenizer)
    if theirs == ours:
        return
    place = next(place for place in range(max(len(theirs), len(ours))) if theirs.get(place) != ours.get(place))
    raise RecipeError(
        f"{_KEY}: '{teacher.title}' has {len(theirs)} tokens and the student {len(ours)}, and token {place} is "
        f"{theirs.get(place)!r} there and {ours.get(place)!r} here; name a teacher with the same tokenizer"
    )


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {place: token for token, place in tokenizer.get_vocab().items()}


def layer_pairs(
    chosen: Mapping[int, int] | None, student: torch.nn.Module, teacher: torch.nn.Module
) -> list[tuple[int, int]]:
    """Layers of the student with those of the teacher that they learn from, counted from 1; 0 is the first's input.

    Raises:
        CapabilityError: a model is no single stack of layers.
        RecipeError: there are no such layers.
    """
    key = "distillation.hidden_states"
    ours, theirs = (len(blocks_of(model)) for model in (student, teacher))
    if chosen is None:
        if theirs % ours:
            raise RecipeError(
                f"{key}: the student has {ours} layers and the teacher {theirs}, so that none lie at the same shares "
                f"of the depth; say which belong together, e.g.  {key}.layers: {{{ours}: {theirs}}}"
            )
        return [(place, place * theirs // ours) for place in range(1, ours + 1)]
    if not chosen:
        raise RecipeError(f"{key}.layers is empty; name pairs of layers, or remove it")
    for count, places, whose in ((ours, chosen.keys(), "student"), (theirs, chosen.values(), "teacher")):
        if beyond := [place for place in places if place > count]:
            raise RecipeError(f"{key}.layers: the {whose} has no layer {beyond[0]}; it has {count}, counted from 1")
    return sorted(chosen.items())


def blocks_of(model: Any) -> torch.nn.ModuleList:
    """The layers of a model.

    Raises:
        CapabilityError: it has several stacks of them, or none.
    """
    stacks = block_lists(model)
    if len(stacks) != 1:
        name = type(model.get_base_model() if hasattr(model, "peft_config") else model).__name__
        raise CapabilityError(
            f"distillation.hidden_states: {name} is no single stack of layers ({len(stacks)} stacks); remove it, the "
            "teacher's predictions can be learnt all the same"
        )
    return next(iter(stacks.values()))
