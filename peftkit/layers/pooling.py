"""One vector for each text, from the vectors of its tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["mean", "cls", "last", "max"]


def pooled(hidden: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """(rows, hidden) float32.

    Args:
        hidden: (rows, tokens, hidden).
        mask: (rows, tokens), 1 at tokens that count, at least one of each row.
        how: mean of the tokens, the first, the last, or the largest value in each dimension.
    """
    hidden, there = hidden.float(), mask.bool()
    if how == "cls":
        first = there.int().argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), first]
    if how == "last":
        last = mask.shape[1] - 1 - there.flip(1).int().argmax(1)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]
    if how == "max":
        return hidden.masked_fill(~there[..., None], float("-inf")).amax(1)
    return (hidden * there[..., None]).sum(1) / there.sum(1, keepdim=True)
