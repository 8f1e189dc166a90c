"""The repeated blocks of a transformer, found from the modules themselves, never from model names."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D


def block_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Every stack of repeated blocks by its name, in order: `encoder.layer`; T5: `encoder.block`, `decoder.block`.

    A stack is an outermost `ModuleList` of modules of one class, each with linear layers inside.
    """
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        nested = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not nested and _is_stack(module):
            found[name] = module
    return found


def _is_stack(blocks: nn.ModuleList) -> bool:
    # peft wraps a block that trains as a whole.
    classes = {type(getattr(block, "original_module", block)) for block in blocks}
    return len(classes) == 1 and all(_linear_layers(block) >= 2 for block in blocks)


def _linear_layers(block: nn.Module) -> int:
    return sum(isinstance(layer, (nn.Linear, Conv1D)) for layer in block.modules())
