"""Padding-free execution: tokens are packed before the first block of a model, and padded again after the last.

Linear layers, norms and activations of the blocks see real tokens only, attention sees each row by itself. Embeddings
and the head stay padded, so that tasks, methods and labels notice nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Token
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from peftkit.kernels.packing import ATTENTION, Packing, current, unsupported
from peftkit.layers.blocks import block_lists


class PaddingFree:
    """Padding-free execution of one model, until `remove`."""

    def __init__(self, model: nn.Module) -> None:
        owner, blocks = _stack(model)
        self.owner = owner
        self.signature = inspect.signature(owner.forward)
        self.started: Token[Packing | None] | None = None
        self.packed = 0
        """Batches that were computed without padding."""
        self.padded = 0
        """Batches that were computed with it, because more than hidden states was wanted of the model."""
        self.bidirectional = any(getattr(part, "is_causal", None) is False for part in blocks.modules())
        self.configs = [config for config in _configs(model) if config._attn_implementation == "sdpa"]
        for config in self.configs:
            config._attn_implementation = ATTENTION
        self.hooks = [
            owner.register_forward_pre_hook(self._begin, with_kwargs=True),
            owner.register_forward_hook(self._end, always_call=True),
            *(block.register_forward_pre_hook(_later, with_kwargs=True) for block in blocks[1:]),
            blocks[0].register_forward_pre_hook(_first, with_kwargs=True),
            blocks[-1].register_forward_hook(_last),
        ]

    def remove(self) -> None:
        """Leave the model as it was."""
        for hook in self.hooks:
            hook.remove()
        for config in self.configs:
            config._attn_implementation = "sdpa"

    def _begin(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._stop()
        given = self.signature.bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        mask = given.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.all():
            return None  # nothing to gain
        real = mask.bool()
        # Heads of encoders read the first place of each row, whatever stands there.
        if unsupported(given) or (self.bidirectional and not real[:, 0].all()):
            self.padded += 1
            return None
        self.packed += 1
        self.started = current.set(Packing(real))
        # A cache that nobody asked for would hold keys of all rows in one.
        return (args, {**kwargs, "use_cache": False}) if "use_cache" in self.signature.parameters else None

    def _end(self, owner: nn.Module, args: Any, output: Any) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.started is not None:
            current.reset(self.started)
            self.started = None


@contextmanager
def without_padding(model: nn.Module) -> Iterator[None]:
    """Inside, a model is computed without padding where it can be."""
    engine = PaddingFree(model) if padding_free_problem(model) is None else None
    try:
        yield
    finally:
        if engine is not None:
            engine.remove()


def padding_free_problem(model: nn.Module) -> str | None:
    """Why a model cannot be computed without padding; None if it can."""
    stacks = block_lists(model)
    if len(stacks) != 1:
        return f"the model has {len(stacks)} stacks of blocks, and one is needed"
    owner, _ = _stack(model)
    if owner is None:
        return "the blocks are part of no model of transformers"
    if "attention_mask" not in inspect.signature(owner.forward).parameters:
        return f"{type(owner).__name__} takes no attention_mask"
    other = {str(config._attn_implementation) for config in _configs(model)} - {"sdpa"}
    if other:
        return f"attention is computed by {', '.join(sorted(other))}, and not by sdpa"
    return None


def _configs(model: nn.Module) -> list[Any]:
    """Every configuration that attention is looked up in; copies of blocks have copies of it."""
    found = {id(config): config for part in model.modules() if (config := getattr(part, "config", None)) is not None}
    return [config for config in found.values() if hasattr(config, "_attn_implementation")]


def _stack(model: nn.Module) -> tuple[Any, nn.ModuleList]:
    """The innermost model of transformers around the only stack of blocks, and the stack."""
    ((name, blocks),) = block_lists(model).items()
    owners = [
        module
        for prefix, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and (not prefix or name.startswith(f"{prefix}."))
    ]
    return (owners[-1] if owners else None), blocks


def _first(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    packing = current.get()
    if packing is None:
        return None
    return packing.packed(args), {name: packing.packed(value) for name, value in kwargs.items()}


def _later(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Hidden states come packed from the block below."""
    packing = current.get()
    if packing is None:
        return None
    read = {name: value if name == "hidden_states" else packing.packed(value) for name, value in kwargs.items()}
    return (*args[:1], *packing.packed(args[1:])), read


def _last(block: nn.Module, args: Any, output: Any) -> Any:
    packing = current.get()
    if packing is None:
        return None
    if isinstance(output, tuple):
        return (packing.padded(output[0]), *output[1:])
    return packing.padded(output)
