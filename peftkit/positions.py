"""How many tokens a model can read: the length of its table of positions, where it has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOST_UNUSED = 8
"""Rows that a table may have beyond the positions that are said of it: OPT and BART keep two."""


def positions_of(model: PreTrainedModel) -> int | None:
    """Tokens that a model, with weights or without, has positions for; None where it computes them for any number."""
    from torch import nn

    said: int | None = getattr(model.config, "max_position_embeddings", None)
    if said is None:
        return None
    for table in model.modules():
        if (
            isinstance(table, nn.Embedding)
            and table is not model.get_input_embeddings()
            and said <= table.num_embeddings <= said + _MOST_UNUSED
        ):
            # Models that count from behind their padding token (RoBERTa) name it in the table.
            return said if table.padding_idx is None else said - table.padding_idx - 1
    return None
