"""How far from the output the parts of a transformer lie, found from the modules themselves."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import nn

from peftkit.layers.blocks import block_lists


def above_stack(model: nn.Module, stack: str, *, heads: bool) -> list[str]:
    """Names of the modules with weights that are defined after a stack of blocks: its final norm, a pooler.

    A module that holds another stack, such as the decoder after an encoder, is none of them.

    Args:
        heads: whether to go on beyond the base model, to its head or output layer.
    """
    stacks = block_lists(model)
    parts = stack.split(".")
    found: list[str] = []
    for depth in range(len(parts) - 1, -1 if heads else 0, -1):
        owner = ".".join(parts[:depth])
        names = [name for name, _ in model.get_submodule(owner).named_children()]
        later = [f"{owner}.{name}".lstrip(".") for name in names[names.index(parts[depth]) + 1 :]]
        found += [
            name
            for name in later
            if any(True for _ in model.get_submodule(name).parameters())
            and not any(f"{other}.".startswith(f"{name}.") for other in stacks)
        ]
    return found


def depth_groups(model: nn.Module) -> list[list[str]]:
    """Names of all parameters by their distance from the output, nearest first.

    First what lies above the blocks (head, pooler, final norm), then block after block from the top, the stacks of an
    encoder-decoder side by side, last what lies below (embeddings). A weight that two parts share belongs to the lower
    one, so that an output layer tied to the embeddings comes last.
    """
    stacks = block_lists(model)
    above = chain.from_iterable(above_stack(model, stack, heads=True) for stack in stacks)
    levels = [list(dict.fromkeys(above))]
    for distance in range(1, max((len(blocks) for blocks in stacks.values()), default=0) + 1):
        levels.append(
            [f"{name}.{len(blocks) - distance}" for name, blocks in stacks.items() if distance <= len(blocks)]
        )
    place: dict[int, int] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        level = next((at for at, parts in enumerate(levels) if _inside(name, parts)), len(levels))
        place[id(parameter)] = max(level, place.get(id(parameter), 0))
    groups: list[list[str]] = [[] for _ in range(len(levels) + 1)]
    for name, parameter in model.named_parameters():
        groups[place[id(parameter)]].append(name)
    return groups


def unfreezing_stages(model: nn.Module, *, blocks_per_stage: int) -> list[list[str]]:
    """Names of the parameters that begin to train together, in order: the head, so many blocks at a time, the rest.

    A model without a new head, such as a language model, starts with its head and topmost blocks at once: there is
    nothing untrained above them.
    """
    top, *blocks, below = depth_groups(model)
    merged = [
        list(chain.from_iterable(blocks[start : start + blocks_per_stage]))
        for start in range(0, len(blocks), blocks_per_stage)
    ]
    find_output: Any = getattr(model, "get_output_embeddings", lambda: None)
    if (find_output() is not None or not top) and merged:
        stages = [[*top, *merged[0]], *merged[1:], below]
    else:
        stages = [top, *merged, below]
    return [stage for stage in stages if stage]


def _inside(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)
