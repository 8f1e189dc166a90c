"""The last block of an encoder whose head reads the first token of each row: only keys and values are of all tokens.

Queries, the output of attention, norms and the feed-forward part are computed for the first tokens alone. Which modules
give queries, keys and values is found by following their results, so that no model has to be known by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from peftkit.kernels.forwards import Compute, ReplacedForward
from peftkit.kernels.packing import Packing, Seen, current

_WATCHED = "peftkit_watched"


class Projections(NamedTuple):
    """What gives the keys and values of a block, from the states that the block is given."""

    key: nn.Module
    value: nn.Module


class _Pass(NamedTuple):
    """What a module was given, and what it gave."""

    module: nn.Module
    given: Tensor
    output: Tensor


class _Call(NamedTuple):
    """What attention was given, and by which module."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    is_biased: bool


class FirstTokens:
    """The last block, computed for the first token of each row of a packed batch until `remove`."""

    def __init__(self, block: nn.Module, projections: Projections) -> None:
        self.projections = projections
        self._all: Tensor | None = None
        self._kept: dict[nn.Module, Tensor] = {}
        self._replaced = ReplacedForward(block, self._forward)
        self._hooks = [
            hook
            for part in projections
            for hook in (part.register_forward_pre_hook(self._given), part.register_forward_hook(self._keep))
        ]

    def remove(self) -> None:
        """Leave the block as it was."""
        for hook in self._hooks:
            hook.remove()
        self._replaced.remove()

    def _forward(self, compute: Compute, /, *args: Any, **kwargs: Any) -> Any:
        packing = current.get()
        if packing is None or not packing.first_only:
            return compute(*args, **kwargs)
        self._all = args[0] if args else kwargs["hidden_states"]
        packing.attend_first = self.attend
        try:
            return compute(
                *(packing.first_of(value) for value in args),
                **{name: packing.first_of(value) for name, value in kwargs.items()},
            )
        finally:
            self._all, packing.attend_first = None, None
            self._kept.clear()

    def _given(self, part: nn.Module, args: tuple[Any, ...]) -> Any:
        return None if self._all is None else (self._all, *args[1:])

    def _keep(self, part: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        packing = current.get()
        if self._all is None or packing is None:
            return None
        self._kept[part] = output
        return output[:, : packing.rows]  # of a shape that the block can go on with; attention takes what is kept

    def attend(self, packing: Packing, query: Tensor, seen: Sequence[Seen], options: Mapping[str, Any]) -> Tensor:
        """Attention (1, rows, heads, features) of first tokens, (1, heads, rows, features), in their rows."""
        heads = query.shape[1]
        key, value = (
            packing.grouped(self._kept[part].view(1, packing.tokens, heads, -1).transpose(1, 2))
            for part in self.projections
        )
        queries = torch.split(query.squeeze(0), [group.rows for group in packing.groups], dim=1)
        parts = []
        for look, q, k, v in zip(seen, queries, key, value, strict=True):
            asking = q.transpose(0, 1).unsqueeze(2)  # (rows, heads, 1, features)
            mask = None if look.mask is None else look.mask[:, :, :1]
            out = scaled_dot_product_attention(asking, k, v, attn_mask=mask, **options)
            parts.append(out.squeeze(2))
        return torch.cat(parts)[None]


def projections_of(block: nn.Module, configs: Sequence[Any], compute: Callable[[], Any]) -> Projections | str:
    """What gives the keys and values of a block, or why its first tokens cannot be computed alone.

    Args:
        configs: in which the model looks up its attention.
        compute: computes the model on a few rows.
    """
    given: list[Tensor] = []
    calls: list[_Call] = []
    passes: list[_Pass] = []  # all are held, so that none gets the memory of another

    def watched(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(_Call(module, query, key, value, kwargs.get("position_bias") is not None))
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            passes.append(_Pass(module, args[0], output))

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.clear()
        passes.clear()
        given[:] = [args[0] if args else kwargs["hidden_states"]]

    AttentionInterface.register(_WATCHED, watched)
    AttentionMaskInterface.register(_WATCHED, sdpa_mask)
    hooks = [part.register_forward_hook(note) for part in block.modules()]
    hooks.append(block.register_forward_pre_hook(begin, with_kwargs=True))
    try:
        with _attention(configs, _WATCHED):
            compute()
    finally:
        for hook in hooks:
            hook.remove()
    return _found(given[0], calls, passes)


def _found(given: Tensor, calls: Sequence[_Call], passes: Sequence[_Pass]) -> Projections | str:
    """Which modules made what attention was given, of the states that the block was given."""
    if len(calls) != 1 or calls[0].is_biased or getattr(calls[0].module, "is_causal", True):
        return "its last block has other than one attention to both sides, without biases"
    call = calls[0]
    reading = [one for one in passes if one.given.data_ptr() == given.data_ptr()]
    found = []
    for tensor in (call.query, call.key, call.value):
        giving = [one.module for one in reading if one.output.data_ptr() == tensor.data_ptr()]
        if not giving:
            return "its last block does more than project before attention"
        found.append(giving[-1])
    if len(set(found)) < len(found) or call.key.shape[1] != call.query.shape[1]:
        return "its last block projects keys and values together"
    return Projections(key=found[1], value=found[2])


@contextmanager
def _attention(configs: Sequence[Any], name: str) -> Iterator[None]:
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = name
    try:
        yield
    finally:
        for config, one in zip(configs, before, strict=True):
            config._attn_implementation = one
