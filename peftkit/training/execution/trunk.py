"""The frozen trunk: blocks below all that trains are computed once for each input, and read from disk afterwards.

The model runs as ever, with its masks, positions and embeddings; only the frozen blocks pass on what they are given,
and the last of them gives the states that were kept. Where anything is drawn in the trunk, it is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from peftkit.kernels.forwards import ReplacedForward
from peftkit.kernels.packing import as_padded, current, unsupported
from peftkit.layers.blocks import block_lists
from peftkit.padding_free import only_stack
from peftkit.training.execution.state_store import KEY_BYTES


class States(Protocol):
    """Where hidden states are kept; see `StateStore`."""

    def get(self, key: bytes, /) -> Tensor | None:
        """States (tokens, width), or None."""

    def put(self, key: bytes, states: Tensor, /) -> None:
        """Keep them."""


@dataclass
class Batch:
    """What the model is given, row by row.

    Args:
        keys: digest of each row's real tokens and all that is said of them.
        counts: real tokens of each row, which stand in front.
        length: tokens of a row with its padding.
        known: states (tokens, width) of each row, None where there are none.
    """

    keys: list[bytes]
    counts: list[int]
    length: int
    known: list[Tensor | None] = field(default_factory=list)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Batch | None:
        """From the arguments of a model; None where rows cannot be told by them."""
        ids = given.get("input_ids")
        named = {name: value for name, value in given.items() if value is not None and not isinstance(value, bool)}
        if not isinstance(ids, Tensor) or ids.ndim != 2 or unsupported(given):
            return None
        if not all(isinstance(value, Tensor) and value.shape == ids.shape for value in named.values()):
            return None
        if any(value.is_floating_point() for value in named.values()):
            return None
        columns = {name: named[name].detach().cpu().numpy() for name in sorted(named)}
        mask = named.get("attention_mask", torch.ones_like(ids)).cpu().bool()
        counts = mask.sum(1)
        if not torch.equal(mask, torch.arange(ids.shape[1]) < counts[:, None]):
            return None  # positions would count the padding in front
        keys = []
        for row, count in enumerate(counts.tolist()):
            digest = blake2b(digest_size=KEY_BYTES)
            for name, values in columns.items():
                digest.update(f"{name} {values.dtype} {count} ".encode())
                digest.update(values[row, :count].tobytes())
            keys.append(digest.digest())
        return cls(keys, counts.tolist(), ids.shape[1])

    @property
    def is_known(self) -> bool:
        """Whether the states of all rows are there."""
        return all(states is not None for states in self.known)

    def padded(self) -> Tensor:
        """The known states as (rows, length, width), zero at padding."""
        there = [states for states in self.known if states is not None]
        padded = there[0].new_zeros(len(there), self.length, there[0].shape[1])
        for row, states in enumerate(there):
            padded[row, : len(states)] = states
        return padded


class Trunk:
    """The lowest blocks of one model, kept from being computed twice until `remove`.

    Args:
        forms: of each block of the trunk, the length of the tuple that it gives, or None where it gives a tensor.
        store: where its states are kept.
        first_only: whether the last block of the model is computed for the first token of each row only; if it belongs
            to the trunk, only the states of these are kept.
    """

    def __init__(
        self, model: nn.Module, forms: Sequence[int | None], store: States, *, first_only: bool = False
    ) -> None:
        self.owner, blocks = only_stack(model)
        self.blocks = list(blocks[: len(forms)])
        self.forms = tuple(forms)
        self.height = len(blocks)
        self.first_only = first_only and len(forms) == len(blocks)
        self.store = store
        self.in_training = True
        """Whether it may be read while the model trains, or in evaluation only."""
        self.drops = True
        """Whether its dropout acts while the model trains."""
        self.problem: str | None = None
        """Why nothing of it is kept; None where it is."""
        self.read = 0
        """Inputs whose states were read."""
        self.computed = 0
        """Inputs whose states were computed and kept."""
        self.batch: Batch | None = None
        self._signature = signature(self.owner.forward)
        self._weights = [weight for block in self.blocks for weight in block.parameters()]
        self._below = [*self.blocks, *modules_below(self.owner)]
        self._replaced = [
            ReplacedForward(block, partial(self._forward, place)) for place, block in enumerate(self.blocks)
        ]
        self._hooks = [
            self.owner.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.owner.register_forward_hook(self._end, always_call=True),
        ]

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()
        for replaced in self._replaced:
            replaced.remove()

    def _begin(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.batch = None
        if owner.training and not self.drops:
            for part in self._below:
                part.eval()
        if any(weight.requires_grad for weight in self._weights):
            self.problem = "the lowest block has begun to train"
        if self.problem is not None or (owner.training and not self.in_training):
            return None
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        batch = Batch.of(given)
        if batch is None:
            return None
        batch.known = [self.store.get(key) for key in batch.keys]
        self.batch = batch
        # A cache that nobody asked for would lack the keys of blocks that are not computed.
        return (args, {**kwargs, "use_cache": False}) if "use_cache" in self._signature.parameters else None

    def _end(self, owner: nn.Module, args: Any, output: Any) -> None:
        self.batch = None

    def _forward(self, place: int, compute: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        batch, is_last = self.batch, place == len(self.blocks) - 1
        if batch is None or not batch.is_known:
            output = compute(*args, **kwargs)
            if batch is not None and is_last:
                self._keep(batch, output[0] if isinstance(output, tuple) else output)
            return output
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if is_last:
            self.read += len(batch.keys)
            states, packing = batch.padded().to(hidden.device), current.get()
            hidden = states if packing is None else packing.packed(states)
            hidden = packing.first_of(hidden) if packing is not None and self.first_only else hidden
        form = self.forms[place]
        return hidden if form is None else (hidden, *[None] * (form - 1))

    def _keep(self, batch: Batch, hidden: Tensor) -> None:
        states = as_padded(hidden.detach()).cpu()
        for row, (key, count) in enumerate(zip(batch.keys, batch.counts, strict=True)):
            if batch.known[row] is None:
                self.store.put(key, states[row, : 1 if self.first_only else count].clone())
                self.computed += 1


def modules_below(owner: nn.Module) -> list[nn.Module]:
    """What is defined before the stack of blocks of a model: embeddings, their norm and dropout."""
    found: list[nn.Module] = []
    holder = owner
    for part in next(iter(block_lists(owner))).split("."):
        children = dict(holder.named_children())
        found += list(children.values())[: list(children).index(part)]
        holder = children[part]
    return found
