"""Where the sub-layers of transformer blocks begin and end, found from the modules themselves, never from model names.

Layers that carry adapters already count as the layers below: a second adapter finds the same places as the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import nn
from transformers.pytorch_utils import Conv1D

from peftkit.errors import CapabilityError
from peftkit.layers.blocks import block_lists

_ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)
_PROJECTS_INPUT = re.compile(r"(^|_)[qkv](_|$)|query|key|value|qkv|(^|_)kv(_|$)|c_attn|in_proj", re.IGNORECASE)
"""Names of layers that make queries, keys and values: they begin an attention part."""
_QUERY = re.compile(r"(^|_)q(_|$)|query(?!_key)", re.IGNORECASE)
Widths = tuple[int, int]


@dataclass(frozen=True)
class Block:
    """Linear layers of one transformer block, by their names in the block.

    Args:
        name: of the block in the model.
        attention_outputs: the last layer of each attention part: one, or two with cross-attention.
        queries: layers that make queries and nothing else.
        feed_forward_input: a layer that reads what the feed-forward part is given.
        feed_forward_output: the layer whose output the feed-forward part gives.
    """

    name: str
    attention_outputs: tuple[str, ...]
    queries: tuple[str, ...]
    feed_forward_input: str
    feed_forward_output: str

    def full(self, layer: str) -> str:
        """A layer's name in the model."""
        return f"{self.name}.{layer}"


def find_blocks(model: nn.Module) -> list[Block]:
    """Every block of every stack of `model`, in order.

    Raises:
        CapabilityError: no blocks, or a block whose parts cannot be told apart; the message lists what was found.
    """
    stacks = block_lists(model)
    blocks = [_parts(block, f"{name}.{index}") for name in stacks for index, block in enumerate(stacks[name])]
    if not blocks:
        raise CapabilityError(
            f"{type(model).__name__} has no stack of repeated blocks with linear layers, so there is no sub-layer to "
            "put an adapter into; choose method lora"
        )
    return blocks


def widths(layer: nn.Module) -> Widths | None:
    """Input and output width of a linear layer, quantized ones and GPT-2's `Conv1D` included; None of other modules."""
    if isinstance(layer, Conv1D):
        return int(layer.nx), int(layer.nf)
    if any(True for _ in layer.children()):
        return None
    features = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    return features if isinstance(features[0], int) and isinstance(features[1], int) else None  # type: ignore[return-value] # both are


def below_adapters(layer: nn.Module) -> nn.Module:
    """`layer` itself, or what the adapters around it have wrapped."""
    while isinstance(inner := getattr(layer, "base_layer", None), nn.Module):
        layer = inner
    return layer


def named_layers(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Names and modules without children, in order; a layer with adapters is one of them, under the adapters' name."""
    for name, child in module.named_children():
        layer = below_adapters(child)
        if any(True for _ in layer.children()):
            yield from named_layers(layer, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", layer


def shortest_names(model: nn.Module, wanted: Sequence[str]) -> list[str]:
    """Name endings after the layer number where these select exactly `wanted`, else the full names; sorted."""
    short = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in wanted})
    everything = [name for name, _ in model.named_modules()]
    selected = {name for name in everything if any(name == end or name.endswith(f".{end}") for end in short)}
    return short if selected == set(wanted) else sorted(wanted)


def _parts(block: nn.Module, name: str) -> Block:
    linear = {path: width for path, layer in named_layers(block) if (width := widths(layer))}
    attention: dict[str, list[str]] = {}
    for path in linear:
        part = _attention_part(block, path)
        if part is not None:
            attention.setdefault(part, []).append(path)
    inside = {path for paths in attention.values() for path in paths}
    ends = _feed_forward_ends({path: width for path, width in linear.items() if path not in inside})
    if ends is None or not attention:
        raise CapabilityError(_not_understood(block, name, linear, inside))
    hidden = linear[ends[1]][1]
    outputs = [[path for path in paths if _ends_attention(path, linear, hidden)] for paths in attention.values()]
    if not all(outputs):
        raise CapabilityError(_not_understood(block, name, linear, inside))
    queries = [path for path in linear if path in inside and _QUERY.search(path.rpartition(".")[2])]
    return Block(name, tuple(paths[-1] for paths in outputs), tuple(queries), *ends)


def _attention_part(block: nn.Module, path: str) -> str | None:
    """The outermost module around a layer whose own name or class says that it is attention."""
    for outer in list(accumulate(path.split("."), "{}.{}".format))[:-1]:
        class_name = type(block.get_submodule(outer)).__name__
        if _ATTENTION.search(outer.rpartition(".")[2]) or _ATTENTION.search(class_name):
            return outer
    return None


def _ends_attention(path: str, linear: Mapping[str, Widths], hidden: int) -> bool:
    return linear[path][1] == hidden and not _PROJECTS_INPUT.search(path.rpartition(".")[2])


def _feed_forward_ends(linear: Mapping[str, Widths]) -> tuple[str, str] | None:
    """First and last layer of a feed-forward part: one or two layers hidden -> inner, then one inner -> hidden.

    A gate may be a layer of its own, or the half of a layer that is twice as wide.
    """
    if len(linear) not in (2, 3):
        return None
    for last in reversed(list(linear)):
        inner, hidden = linear[last]
        first = [path for path in linear if path != last]
        if all(linear[path][0] == hidden and linear[path][1] in (inner, 2 * inner) for path in first):
            return first[0], last
    return None


def _not_understood(block: nn.Module, name: str, linear: Mapping[str, Widths], inside: set[str]) -> str:
    def listed(paths: list[str]) -> str:
        return ", ".join(f"{path} ({linear[path][0]} -> {linear[path][1]})" for path in paths) or "none"

    return (
        f"the sub-layers of {name} ({type(block).__name__}) cannot be told apart; expected attention that ends in a "
        "linear layer, and a feed-forward part of two or three linear layers; found in attention: "
        f"{listed([path for path in linear if path in inside])}; elsewhere: "
        f"{listed([path for path in linear if path not in inside])}; choose method lora"
    )
