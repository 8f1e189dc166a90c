"""Which linear layers of a model a tuning method changes, found from the modules themselves, never from model names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from peftkit.errors import CapabilityError

if TYPE_CHECKING:
    from torch import nn

Targets = Literal["attention", "mlp", "all-linear"] | tuple[str, ...]
_ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)


def find_targets(model: nn.Module, targets: Targets, *, head_modules: Sequence[str]) -> list[str]:
    """Names for peft's `target_modules` that match just the wanted layers; see `target_layers`.

    Returns:
        Shortest name endings that select exactly the wanted layers, sorted.
    """
    wanted = target_layers(model, targets, head_modules=head_modules)
    return _endings(wanted, everything=[name for name, _ in model.named_modules()])


def target_layers(model: nn.Module, targets: Targets, *, head_modules: Sequence[str]) -> list[str]:
    """Full names of the wanted linear layers, in the model's order.

    Args:
        model: the base model with its head; its weights may not be there yet.
        targets: `attention`: linear layers inside attention blocks; `mlp`: all other linear layers inside the repeated
            blocks; `all-linear`: every linear layer but heads; or patterns, each the end of a module's name
            ("query", "attention.output.dense") or a regular expression for the whole name (".*layer.[01].*query").
        head_modules: modules that are trained whole and so are never targets.

    Raises:
        CapabilityError: a pattern or group matches nothing; the message lists what the model has.
    """
    linear = [name for name in linear_layers(model) if not _inside(name, head_modules)]
    if isinstance(targets, tuple):
        wanted = _by_pattern(linear, targets)
    else:
        wanted = [name for name in linear if _belongs(name, targets)]
    if not wanted:
        raise CapabilityError(
            f"method.target_modules {targets!r} matches no linear layer of {type(model).__name__}; "
            f"it has: {', '.join(folded(linear)) or 'none that peft can adapt'}"
        )
    return wanted


def in_blocks(model: nn.Module, layers: Sequence[str], numbers: Sequence[int]) -> list[str]:
    """Those of `layers` that lie in the blocks with these numbers, from 0, of each stack of blocks.

    Raises:
        CapabilityError: a number is beyond the last block, or none of `layers` lies in these blocks.
    """
    from peftkit.layers.blocks import block_lists

    stacks = block_lists(model)
    count = max((len(blocks) for blocks in stacks.values()), default=0)
    if count == 0:
        raise CapabilityError(
            f"method.layers needs repeated blocks, but {type(model).__name__} has none; remove it from the recipe"
        )
    if beyond := [number for number in numbers if not 0 <= number < count]:
        raise CapabilityError(
            f"method.layers names block {beyond[0]}, but {type(model).__name__} has blocks 0 to {count - 1}"
        )
    blocks = tuple(f"{stack}.{number}." for stack in stacks for number in numbers)
    found = [name for name in layers if name.startswith(blocks)]
    if not found:
        raise CapabilityError(
            f"method.layers {list(numbers)} hold none of the targets, which are: {', '.join(folded(layers))}"
        )
    return found


def linear_layers(model: nn.Module) -> list[str]:
    """Names of all linear layers, quantized ones and GPT-2's `Conv1D` included, output embeddings excluded."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    find_output: Any = getattr(model, "get_output_embeddings", lambda: None)
    output = find_output()
    return [
        name for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, Conv1D)) and layer is not output
    ]


def stores_weights_transposed(model: nn.Module) -> bool:
    """Whether the linear layers are `Conv1D`, with weights (in, out): what peft calls `fan_in_fan_out`."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(layer, Conv1D) for layer in model.modules())


def folded(names: Iterable[str]) -> list[str]:
    """`names` with layer numbers as `*`, each once, in order: encoder.layer.*.attention.self.query."""
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names))


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _belongs(name: str, group: str) -> bool:
    if group == "all-linear":
        return True
    in_block = re.search(r"\.\d+\.(.*)", name)
    if in_block is None:
        return False
    return bool(_ATTENTION.search(in_block[1])) == (group == "attention")


def _by_pattern(linear: list[str], patterns: Sequence[str]) -> list[str]:
    wanted: set[str] = set()
    for pattern in patterns:
        found = [name for name in linear if name == pattern or name.endswith(f".{pattern}")]
        found = found or [name for name in linear if _is_whole(pattern, name)]
        if not found:
            raise CapabilityError(
                f"method.target_modules: {pattern!r} is the end of no linear layer's name, nor a regular expression "
                f"for one; the model has: {', '.join(folded(linear))}"
            )
        wanted.update(found)
    return [name for name in linear if name in wanted]


def _is_whole(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as problem:
        raise CapabilityError(
            f"method.target_modules: {pattern!r} is the end of no linear layer's name, and as a regular expression "
            f"it is wrong: {problem}; correct it"
        ) from problem


def _endings(wanted: list[str], *, everything: list[str]) -> list[str]:
    """Endings after the layer number where these select exactly `wanted`, else the full names."""
    short = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in wanted})
    selected = {name for name in everything if any(name == end or name.endswith(f".{end}") for end in short)}
    return short if selected == set(wanted) else sorted(wanted)
