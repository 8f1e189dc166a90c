"""Models with fewer blocks than their checkpoint: a smaller model that starts from a larger one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from peftkit.errors import CapabilityError
from peftkit.layers.blocks import block_lists


def keep_blocks(model: PreTrainedModel, kept: Sequence[int] | None) -> None:
    """Drop all blocks of `model` but those in `kept`; its configuration then describes what is left.

    Args:
        model: with one stack of blocks; changed in place.
        kept: places of blocks, counted from 0, ascending; None: all.

    Raises:
        CapabilityError: there are no such blocks.
    """
    if kept is None:
        return
    stacks = list(block_lists(model).items())
    count = getattr(model.config, "num_hidden_layers", None)
    if len(stacks) != 1 or len(stacks[0][1]) != count:
        raise CapabilityError(
            f"model.layers: {type(model).__name__} is no single stack of layers of its own ({len(stacks)} stacks), so "
            "that none can be left out; remove it"
        )
    name, blocks = stacks[0]
    if kept[-1] >= count:
        raise CapabilityError(
            f"model.layers: there is no layer {kept[-1]}, the base has {count}, counted from 0 to {count - 1}; choose "
            "among those"
        )
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.ModuleList(blocks[place] for place in kept))
    for place, old in enumerate(kept):
        inside: list[Any] = list(blocks[old].modules())
        for module in inside:
            if hasattr(module, "layer_idx"):  # where keys and values are cached
                module.layer_idx = place
    for key, value in vars(model.config).items():
        if isinstance(value, list) and len(value) == count:  # one entry per layer, such as the kind of attention
            setattr(model.config, key, [value[place] for place in kept])
    model.config.num_hidden_layers = len(kept)
