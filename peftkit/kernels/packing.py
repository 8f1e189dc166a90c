"""A batch without its padding: which tokens are real, and attention among those of each row.

Rows are packed from the shortest to the longest, so that rows of equal length lie side by side and share one call of
the attention kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import create_position_bias_mask, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "peftkit_packed"
"""Name under which transformers knows `packed_attention`; it is its SDPA attention where nothing is packed."""


class Group(NamedTuple):
    """Rows of one length.

    Args:
        first: place of their first token among the packed ones.
        rows: how many.
        length: tokens of each.
    """

    first: int
    rows: int
    length: int


class Seen(NamedTuple):
    """What the tokens of a group may look at: all, or those before them, or what a mask says."""

    mask: Tensor | None
    causal: bool


class AttendFirst(Protocol):
    """See `first_token.FirstTokens.attend`."""

    def __call__(self, packing: Packing, query: Tensor, seen: Sequence[Seen], options: Mapping[str, Any], /) -> Tensor:
        """Attention of the first token of each row."""


class Packing:
    """Where the real tokens of a padded batch are.

    Args:
        real: (rows, length) true at real tokens, which need not be contiguous.
        first_only: whether the last block is computed for the first token of each row only; no row is empty then.
    """

    def __init__(self, real: Tensor, *, first_only: bool = False) -> None:
        self.rows, self.length = real.shape
        counts = real.sum(1)
        order = counts.argsort(stable=True)
        row, place = real[order].nonzero(as_tuple=True)
        self.places = order[row] * self.length + place
        """(tokens,) places of the packed tokens in the flattened batch."""
        self.columns = place
        """(tokens,) places in their rows."""
        self.groups: list[Group] = []
        lengths, sizes = torch.unique_consecutive(counts[order], return_counts=True)
        first = 0
        for length, size in zip(lengths.tolist(), sizes.tolist(), strict=True):
            if length:
                self.groups.append(Group(first, size, length))
                first += size * length
        self.tokens = first
        self.first_only = first_only
        self.firsts = (place == 0).nonzero().squeeze(1) if first_only else place.new_empty(0)
        """(rows,) places of the first tokens of rows among the packed ones."""
        self.attend_first: AttendFirst | None = None
        """How those look at the tokens of their rows, while the last block is computed for them."""
        self._known: dict[int, tuple[Tensor, Any]] = {}

    def packed(self, value: Any) -> Any:
        """A tensor (rows or 1, length, ...) as (1, tokens, ...); tuples of them alike; all else as it is."""
        if isinstance(value, tuple):
            return tuple(self.packed(part) for part in value)
        if not isinstance(value, Tensor) or value.ndim not in (2, 3) or value.shape[1] != self.length:
            return value
        if value.shape[0] == self.rows:
            return self._once(value, lambda: value.flatten(0, 1).index_select(0, self.places)[None])
        if value.shape[0] == 1:
            return self._once(value, lambda: value.index_select(1, self.columns))
        return value

    def first_of(self, value: Any) -> Any:
        """Of a tensor (1, tokens, ...) the first token of each row, (1, rows, ...); all else as it is."""
        if isinstance(value, Tensor) and value.shape[:2] == (1, self.tokens):
            return value.index_select(1, self.firsts)
        return value

    def padded(self, packed: Tensor) -> Tensor:
        """(1, tokens, ...), or of first tokens (1, rows, ...), as (rows, length, ...), zero where there is none."""
        places = self.places if packed.shape[1] == self.tokens else self.places[self.firsts]
        flat = packed.new_zeros(self.rows * self.length, *packed.shape[2:])
        return flat.index_copy(0, places, packed.squeeze(0)).view(self.rows, self.length, *packed.shape[2:])

    def grouped(self, packed: Tensor) -> list[Tensor]:
        """(1, heads, tokens, features) by group: (rows, heads, length, features), views of it."""
        # Split in one piece: its gradient is one concatenation, that of slices a full tensor each.
        parts = torch.split(packed.squeeze(0), [group.rows * group.length for group in self.groups], dim=1)
        return [
            part.reshape(part.shape[0], group.rows, group.length, part.shape[2]).transpose(0, 1)
            for part, group in zip(parts, self.groups, strict=True)
        ]

    def seen(self, mask: Tensor | None, *, causal: bool) -> list[Seen]:
        """What each group may look at, of a mask (rows or 1, heads or 1, length, length) for the padded batch.

        Args:
            mask: true where a token may look, or what is added to its scores.
            causal: what holds without a mask.
        """
        if mask is None:
            return [Seen(None, causal and group.length > 1) for group in self.groups]
        found: list[Seen] = self._once(mask, lambda: [self._seen(mask, group) for group in self.groups])
        return found

    def biases(self, bias: Tensor | None) -> list[Tensor | None]:
        """What is added to the scores of each group, of (rows or 1, heads, length, length) for the padded batch."""
        if bias is None:
            return [None for _ in self.groups]
        found: list[Tensor | None] = self._once(bias, lambda: [self._part(bias, group) for group in self.groups])
        return found

    def _part(self, scores: Tensor, group: Group) -> Tensor:
        places = self.places[group.first : group.first + group.rows * group.length].view(group.rows, group.length)
        columns = places % self.length
        rows = places[:, 0] // self.length if scores.shape[0] > 1 else torch.zeros_like(places[:, 0])
        return scores[rows[:, None, None], :, columns[:, :, None], columns[:, None, :]].movedim(-1, 1)

    def _seen(self, mask: Tensor, group: Group) -> Seen:
        part = self._part(mask, group)
        everything = part if part.dtype == torch.bool else part == 0
        if everything.all():
            return Seen(None, causal=False)
        before = torch.ones(group.length, group.length, dtype=torch.bool, device=part.device).tril()
        if part.dtype == torch.bool and (part == before).all():
            return Seen(None, causal=True)
        return Seen(part, causal=False)

    def _once(self, value: Tensor, make: Any) -> Any:
        """`make()`, once for each tensor that blocks are given again and again."""
        if id(value) not in self._known:
            self._known[id(value)] = (value, make())  # kept, so that no other tensor gets its id
        return self._known[id(value)][1]


current: ContextVar[Packing | None] = ContextVar("packing", default=None)
"""The batch whose blocks are being computed without padding."""


def as_padded(hidden: Tensor) -> Tensor:
    """What a block is given or gives, (rows, length, width), whether its batch is packed or not."""
    packing = current.get()
    if packing is None or hidden.shape[:2] not in ((1, packing.tokens), (1, len(packing.firsts))):
        return hidden
    return packing.padded(hidden)


def packed_attention(  # noqa: PLR0913 # the signature is that of transformers
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it; each row of a packed batch among its own tokens.

    Args:
        query, key, value: (1, heads, tokens, features); key and value may have fewer heads.
        attention_mask, position_bias: for the padded batch; see `Packing.seen` and `Packing.biases`.

    Returns:
        (1, tokens, heads, features).
    """
    packing = current.get()
    if packing is None:
        outcome: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, position_bias, **kwargs
        )
        return outcome
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if packing.attend_first is not None:
        looks = packing.seen(attention_mask, causal=causal)
        return packing.attend_first(packing, query, looks, {"dropout_p": dropout, "scale": scaling}), None
    shares = query.shape[1] // key.shape[1]
    parts = []
    tensors = map(packing.grouped, (query, key, value))
    by_group = zip(packing.seen(attention_mask, causal=causal), packing.biases(position_bias), *tensors, strict=True)
    for seen, bias, q, k, v in by_group:
        if bias is not None:
            seen = Seen(create_position_bias_mask(bias, seen.mask, seen.causal, q, k), causal=False)
        is_shared = shares > 1 and (query.device.type == "cpu" or seen.mask is None)
        if shares > 1 and not is_shared:  # the kernels of GPUs take no mask then
            k, v = (part.repeat_interleave(shares, dim=1) for part in (k, v))
        options = {"dropout_p": dropout, "is_causal": seen.causal, "scale": scaling, "enable_gqa": is_shared}
        out = scaled_dot_product_attention(q, k, v, attn_mask=seen.mask, **options)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)[None], None


def unsupported(kwargs: Mapping[str, Any]) -> bool:
    """Whether a call wants of a model what only a padded batch can give: a cache, or what is inside of it."""
    wanted = ("past_key_values", "use_cache", "output_attentions", "output_hidden_states")
    return any(kwargs.get(name) not in (None, False) for name in wanted)


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
