"""The base model with the tuning method applied, or the reason why they do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from peftkit.errors import CapabilityError, RecipeError
from peftkit.methods import TuningContext
from peftkit.models import (
    LoadedModel,
    Storage,
    base_bits,
    load_model,
    make_room,
    quiet_libraries,
    skeleton,
    storage_of,
    to_float32_masters,
)
from peftkit.positions import positions_of
from peftkit.recipe import Recipe
from peftkit.tasks import ROW, Head
from peftkit.training.augmenting import most_rows
from peftkit.training.batching import TokenBatches, token_lengths
from peftkit.training.prepare import PreparedData
from peftkit.training.setup import steps_per_epoch, total_steps


def check_method(
    recipe: Recipe, head: Head, tokenizer: PreTrainedTokenizerBase, *, dtype: torch.dtype, rows: int
) -> None:
    """Hold the tuning method and the regularizers against the architecture and its storage, on a model without weights.

    Args:
        dtype: type in which unquantized weights are held.
        rows: training rows, before any are added to them.

    Raises:
        CapabilityError: the method cannot tune this model, or a regularizer cannot work on it; says why and what to do.
    """
    bare = skeleton(recipe.model, head)
    _check_length(recipe, bare.model)
    storage = storage_of(recipe, head, dtype=dtype)
    context = _context(recipe, bare, head=head, storage=storage, rows=most_rows(recipe, rows))
    if problem := recipe.method.problem(bare.model, replace(context, tokenizer=tokenizer)):
        raise CapabilityError(problem)
    for part in recipe.regularizers:
        if problem := part.problem(bare.model):
            raise CapabilityError(problem)


def tuned_model(
    recipe: Recipe, data: PreparedData, tokenizer: PreTrainedTokenizerBase, *, storage: Storage, trust_remote_code: bool
) -> LoadedModel:
    """The base model with the method applied; new weights are drawn from the recipe's seed, all that trains is float32.

    Raises:
        CapabilityError: the method cannot tune this model.
    """
    set_seed(recipe.seed)
    head = data.task.head()
    base = load_model(recipe.model, head, storage=storage, trust_remote_code=trust_remote_code)
    if recipe.model.architecture is not None:
        record = base.artifact.record.model_copy(update={"locator": recipe.model.title, "origin": "memory"})
        base = replace(base, artifact=replace(base.artifact, record=record))
    rows = len(data.features["train"])
    context = replace(
        _context(recipe, base, head=head, storage=storage, rows=rows),
        batches=_batches(recipe, data, tokenizer, device=base.model.device),
        tokenizer=tokenizer,
    )
    if recipe.training.batch_tokens is not None:
        count = TokenBatches.of(recipe, token_lengths(data.features["train"], data.task)).count
        steps = total_steps(recipe, rows, batches=count), steps_per_epoch(recipe, rows, batches=count)
        context = replace(context, total_steps=steps[0], steps_per_epoch=steps[1])
    make_room(base.model, tokenizer)
    with quiet_libraries():
        model = recipe.method.apply(base.model, context)
    return replace(base, model=to_float32_masters(model))


def _check_length(recipe: Recipe, model: PreTrainedModel) -> None:
    limit, before = positions_of(model), getattr(recipe.method, "virtual_tokens", 0)
    if limit is None or recipe.model.max_length + before <= limit:
        return
    taken = f", of which method.virtual_tokens takes {before}" if before else ""
    built = recipe.model.architecture is not None
    hint = ", or raise  model.architecture.max_position_embeddings" if built else ""
    raise RecipeError(
        f"model.max_length is {recipe.model.max_length}, and {type(model).__name__} has positions for {limit} "
        f"tokens{taken}; lower it to {limit - before}{hint}"
    )


def _context(recipe: Recipe, base: LoadedModel, *, head: Head, storage: Storage, rows: int) -> TuningContext:
    return TuningContext(
        peft_task_type=head.peft_task_type,
        head_modules=base.head_modules,
        total_steps=total_steps(recipe, rows),
        steps_per_epoch=steps_per_epoch(recipe, rows),
        base_bits=base_bits(recipe.model, storage),
        gradient_checkpointing=recipe.training.gradient_checkpointing,
    )


def _batches(
    recipe: Recipe, data: PreparedData, tokenizer: PreTrainedTokenizerBase, *, device: torch.device
) -> Callable[[], Iterator[Mapping[str, torch.Tensor]]]:
    """Function that gives the training batches without labels, shuffled once from the seed."""

    def batches() -> Iterator[Mapping[str, torch.Tensor]]:
        rows = data.features["train"].shuffle(seed=recipe.seed)
        loader = DataLoader(rows, batch_size=recipe.training.batch_size, collate_fn=data.task.collator(tokenizer))
        for batch in loader:
            yield {name: tensor.to(device) for name, tensor in batch.items() if name not in (ROW, "labels")}

    return batches
