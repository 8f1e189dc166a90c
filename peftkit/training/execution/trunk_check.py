"""Whether a run has a frozen trunk that need not be computed twice: found by trying it on a few rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from peftkit.errors import RecipeError
from peftkit.layers.blocks import block_lists
from peftkit.layers.depth import above_stack
from peftkit.padding_free import only_stack
from peftkit.regularizers.random_state import random_state
from peftkit.tasks import ROW
from peftkit.training.execution.state_store import StateStore, make_room, raw
from peftkit.training.execution.trunk import Trunk
from peftkit.training.setup import Setup, steps_per_epoch, total_steps

_PROBE_ROWS = 4
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LOWEST_TRAINS = "the lowest block of the model trains, or what it reads does"
_NOT_BELOW = ("_name_or_path", "architectures", "id2label", "label2id", "problem_type", "use_cache")
"""Of a configuration: what no block depends on."""


def trunk_or_reason(setup: Setup, *, first_only: bool) -> Trunk | str:
    """The trunk of a run at work, or why it has none.

    Args:
        first_only: whether the last block is computed for the first token of each row only.

    Raises:
        RecipeError: its dropout should not act, and it has none.
    """
    training = setup.recipe.training
    problem = _recipe_problem(setup)
    if problem is not None and training.frozen_dropout:
        return problem
    with _Probe(setup) as probe:
        forms = probe.frozen_forms()
        if isinstance(forms, str):
            if not training.frozen_dropout:
                raise RecipeError(f"training.frozen_dropout is false, but {forms}; remove it")
            return forms
        trunk = Trunk(setup.model, forms, Memory(), first_only=first_only)
        trunk.drops = training.frozen_dropout
        trunk.problem = problem or probe.problem(trunk) or _open(setup, trunk, next(iter(probe.states.values())))
    if trunk.problem is not None and trunk.drops:
        trunk.remove()
        return trunk.problem
    return trunk


def _recipe_problem(setup: Setup) -> str | None:
    recipe, task = setup.recipe, setup.recipe.task
    moving = next((part.name for part in recipe.regularizers if part.moves_inputs or part.mixes_rows), None)
    if recipe.training.trunk_cache_gib == 0:
        return "training.trunk_cache_gib is 0"
    if task.engine is not None:
        return "the trainer of another library computes the task's loss"
    if task.draws:
        return f"task {task.name!r} draws its inputs anew in each epoch"
    if setup.data.loaded.stream is not None:
        return "the rows are a stream"
    if moving is not None:
        return f"regularizer {moving!r} changes what the lowest block reads"
    if recipe.distillation is not None and recipe.distillation.hidden_states is not None:
        return "distillation reads what the blocks give"
    return None


class Memory(dict[bytes, Tensor]):
    """States in memory."""

    def put(self, key: bytes, states: Tensor) -> None:
        """Keep them."""
        self[key] = states


class _Probe:
    """A few rows that the model is tried on; leaves mode and random state as they were."""

    def __init__(self, setup: Setup) -> None:
        self.model, self.task = setup.model, setup.recipe.task
        self.collate = self.task.evaluation_collator(setup.data.tokenizer)
        features = setup.data.features["train"]
        self.rows = features.select(range(min(_PROBE_ROWS, len(features)))).to_list()
        self.type = _TYPES.get(setup.environment.precision, torch.float32)
        self.states: Mapping[bytes, Tensor] = {}

    def __enter__(self) -> _Probe:
        self.was_training = self.model.training
        self.forked = torch.random.fork_rng()
        self.forked.__enter__()
        self.model.eval()
        return self

    def __exit__(self, *problem: Any) -> None:
        self.forked.__exit__(*problem)
        self.model.train(self.was_training)

    def computed(self, rows: list[dict[str, Any]]) -> list[Tensor]:
        """All tensors of the model's output."""
        device = self.model.device
        batch = {name: part.to(device) for name, part in self.collate(rows).items() if name != ROW}
        with torch.autocast(device.type, self.type, enabled=self.type != torch.float32):
            return list(_tensors(self.task.forward(self.model, batch)))

    def frozen_forms(self) -> list[int | None] | str:
        """Of the blocks below all that gets gradients; see `Trunk`. Or why they cannot be left out."""
        stacks = block_lists(self.model)
        if len(stacks) != 1 or only_stack(self.model)[0] is None:
            return f"the model has {len(stacks)} stacks of blocks, and one is needed, in a model of transformers"
        _, blocks = only_stack(self.model)
        if any(weight.requires_grad for weight in blocks[0].parameters()):  # found without trying, which takes memory
            return _LOWEST_TRAINS
        outputs: dict[int, list[Any]] = {place: [] for place in range(len(blocks))}

        def note(place: int) -> Any:
            return lambda block, args, output: outputs[place].append(output)

        hooks = [block.register_forward_hook(note(place)) for place, block in enumerate(blocks)]
        try:
            with torch.enable_grad():
                self.computed(self.rows)
        finally:
            for hook in hooks:
                hook.remove()
        forms: list[int | None] = []
        for found in outputs.values():
            if not found or any(part.requires_grad for output in found for part in _tensors(output)):
                break
            if sum(1 for _ in _tensors(found[0])) != 1:
                return "the blocks give more than hidden states"
            forms.append(len(found[0]) if isinstance(found[0], tuple) else None)
        return forms or _LOWEST_TRAINS

    @torch.no_grad()
    def problem(self, trunk: Trunk) -> str | None:
        """Why the model is not the same with its states read, or None; finds out whether it is so while it trains."""
        self.states = trunk.store = Memory()
        wanted = self.computed(self.rows)
        if not self.states:
            return "the model is not given token by token what it reads"
        found = self.computed(self.rows)
        if trunk.read == 0 or not all(map(self._close, found, wanted)):
            return "the model reads more of its lower blocks than hidden states"
        alone = trunk.store = Memory()
        self.computed(self.rows[:1])
        if not alone or any(key not in self.states or not self._close(alone[key], self.states[key]) for key in alone):
            return "what the lower blocks make of a row depends on the others in its batch"
        trunk.in_training = self._is_still(trunk)
        trunk.read = trunk.computed = 0
        return None

    def _close(self, found: Tensor, wanted: Tensor) -> bool:
        tolerance = 1e-3 if self.type == torch.float32 and wanted.dtype == torch.float32 else 5e-2
        return torch.allclose(found.float(), wanted.float(), rtol=tolerance, atol=tolerance)

    def _is_still(self, trunk: Trunk) -> bool:
        """Whether the trunk gives the same in training, and draws nothing."""
        trunk.store = trained = Memory()
        self.model.train()
        with _random_states(trunk) as (before, after):
            self.computed(self.rows)
        self.model.eval()
        drawn = any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
        return not drawn and all(torch.equal(trained[key], states) for key, states in self.states.items())


@contextmanager
def _random_states(trunk: Trunk) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Those before and after the trunk is computed."""
    before: list[Tensor] = []
    after: list[Tensor] = []
    hooks = [
        trunk.owner.register_forward_pre_hook(lambda *_: before.extend(random_state())),
        trunk.blocks[-1].register_forward_hook(lambda *_: after.extend(random_state())),
    ]
    try:
        yield before, after
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)


def _open(setup: Setup, trunk: Trunk, sample: Tensor) -> str | None:
    """Give the trunk its store on disk; why there is none, or None."""
    training = setup.recipe.training
    store = StateStore(identity(setup, trunk, sample.dtype), budget_bytes=int(training.trunk_cache_gib * 2**30))
    rows = len(setup.data.features["train"])
    if len(store) == 0:
        if total_steps(setup.recipe, rows) <= steps_per_epoch(setup.recipe, rows):
            return "each row is read once"
        needed = _tokens(setup, trunk) * sample.shape[1] * sample.element_size()
        problem = make_room(store.folder, needed, budget_bytes=store.budget_bytes)
        if problem is not None:
            return problem
    trunk.store = store
    return None


def _tokens(setup: Setup, trunk: Trunk) -> int:
    """Of all rows that the trunk is computed for, those whose states are kept."""
    splits = setup.data.features if trunk.in_training else {**setup.data.features, "train": None}
    found = [rows["input_ids"] for rows in splits.values() if rows is not None and "input_ids" in rows.column_names]
    return sum(len(ids) if trunk.first_only else _count(ids) for ids in found)


def _count(ids: Any) -> int:
    nested = len(ids) and not isinstance(ids[0], int)
    return sum(map(_count, ids)) if nested else len(ids)


def identity(setup: Setup, trunk: Trunk, dtype: torch.dtype) -> str:
    """Digest of all that decides what the trunk makes of an input: its weights, its shape, how it is computed."""
    owner: nn.Module = trunk.owner
    ((stack, blocks),) = block_lists(owner).items()
    live = [f"{stack}.{place}" for place in range(len(trunk.blocks), len(blocks))] + above_stack(
        owner, stack, heads=True
    )
    config = {name: value for name, value in trunk.owner.config.to_dict().items() if name not in _NOT_BELOW}
    environment, quantizer = setup.environment, setup.recipe.quantization
    said = [
        *(torch.__version__, transformers.__version__, environment.device, environment.precision, str(dtype)),
        *(
            len(trunk.blocks),
            trunk.first_only,
            type(owner).__qualname__,
            config,
            quantizer and quantizer.model_dump(mode="json"),
        ),
    ]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for name, tensor in sorted({**dict(owner.named_parameters()), **dict(owner.named_buffers())}.items()):
        if not any(f"{name}.".startswith(f"{part}.") for part in live):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(raw(tensor))
    return digest.hexdigest()
