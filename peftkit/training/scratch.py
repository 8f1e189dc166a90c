"""Models from scratch: a tokenizer trained on the run's own texts, and random weights, laid down as a base model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from peftkit.errors import CapabilityError, RecipeError
from peftkit.models import quiet_libraries
from peftkit.recipe import ModelSpec, Recipe
from peftkit.registry import closest
from peftkit.tasks import Head, Task
from peftkit.training.vocabulary import train_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

_FROM_TOKENIZER = ("pad_token_id", "bos_token_id", "eos_token_id")


def lay_base(recipe: Recipe, task: Task, rows: Dataset, folder: Path) -> Recipe:
    """The recipe on a base model in `folder`, made as `model.architecture` says, where the recipe has one.

    A base that is there is used: a resumed run goes on with its own.

    Args:
        rows: of the training split; the tokenizer learns from no other.

    Raises:
        RecipeError: the architecture cannot be built.
        CapabilityError: it has no head for the task.
    """
    spec = recipe.model
    if spec.architecture is None:
        return recipe
    if not folder.is_dir():
        building = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(building, ignore_errors=True)
        _build(recipe, task, rows, building)
        building.rename(folder)
    return recipe.model_copy(update={"model": spec.at(folder)})


def _build(recipe: Recipe, task: Task, rows: Dataset, folder: Path) -> None:
    spec, head = recipe.model, task.head()
    assert spec.tokenizer is not None  # a recipe with an architecture has one
    texts = _texts(task, rows)
    writes_on = head.peft_task_type == "CAUSAL_LM"
    tokenizer = train_tokenizer(spec.tokenizer, texts, writes_on=writes_on, max_length=spec.max_length)
    config = _config(spec, tokenizer, head)
    with quiet_libraries(), torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        try:
            model = getattr(transformers, head.auto_class).from_config(config)
        except ValueError as problem:
            if "Unrecognized configuration class" in str(problem):
                raise CapabilityError(
                    f"model.architecture.type {config.model_type!r} has no head for task {task.name!r}; choose another"
                ) from problem
            raise RecipeError(f"model.architecture cannot be built: {problem}; correct it") from problem
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _texts(task: Task, rows: Dataset) -> list[str]:
    """What the tokenizer learns from; a cell may be a list of texts."""
    cells = [cell for column in task.vocabulary_columns if column in rows.column_names for cell in rows[column]]
    return [str(text) for cell in cells for text in (cell if isinstance(cell, (list, tuple)) else [cell])]


def architecture_config(spec: ModelSpec) -> PretrainedConfig:
    """The configuration that `model.architecture` gives, before there is a tokenizer.

    Raises:
        RecipeError: an unknown type, an unknown key, or a value that is none.
    """
    values = dict(spec.architecture or {})
    kind = values.pop("type")
    if kind not in CONFIG_MAPPING:
        close = closest(kind, CONFIG_MAPPING)
        hint = f"; did you mean {close!r}?" if close else ""
        raise RecipeError(f"model.architecture.type: transformers knows no architecture {kind!r}{hint}")
    known = CONFIG_MAPPING[kind]()
    for key in values:
        if key == "vocab_size" or not hasattr(known, key):
            raise RecipeError(f"model.architecture.{key}: {_no_key(kind, key, known)}")
    try:
        return AutoConfig.for_model(kind, **values)
    except (ValueError, TypeError, StrictDataclassError) as problem:
        raise RecipeError(f"model.architecture: {' '.join(str(problem).split())}; correct the value") from problem


def _no_key(kind: str, key: str, known: PretrainedConfig) -> str:
    if key == "vocab_size":
        return "the vocabulary is that of the tokenizer; set  model.tokenizer.vocab_size"
    close = closest(key, [*known.to_dict(), *known.attribute_map])
    return f"{kind} has no such key" + (f"; did you mean {close!r}?" if close else "; remove it")


def _config(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, head: Head) -> PretrainedConfig:
    config = architecture_config(spec)
    ids: Mapping[str, Any] = {name: getattr(tokenizer, name) for name in _FROM_TOKENIZER}
    config.update({"vocab_size": len(tokenizer), **ids})
    if config.is_encoder_decoder:
        config.decoder_start_token_id = tokenizer.pad_token_id
    for key, value in head.config.items():
        setattr(config, key, value)
    return config
