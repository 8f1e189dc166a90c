"""Which modules of a model with its task's head are new to the base: they start random, train and are saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from peftkit.tasks import Head


def drop_unused(model: PreTrainedModel, head: Head) -> None:
    """Take out of `model` what the task does not use, so that nothing trains or is saved that has no effect."""
    for name in head.unused:
        if getattr(model, name, None) is not None:
            setattr(model, name, None)


def new_modules(model: PreTrainedModel, head: Head, missing: set[str]) -> tuple[str, ...]:
    """Names of the modules that are new to the base.

    Args:
        missing: names of the parameters that the checkpoint has no weights for.
    """
    if not head.is_new:
        holders = {key.rpartition(".")[0] for key in missing}
        # A vocabulary's bias beside its tied embedding has no module of its own: it stays at zero under adapters.
        modules = {name: module for name, module in model.named_modules() if name in holders}
        return tuple(name for name, module in modules.items() if _lacks_all(missing, name, module))
    outside = [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]
    inside = {key.rpartition(".")[0] for key in missing if key.startswith(f"{model.base_model_prefix}.")}
    return tuple(outside + sorted(inside))


def _lacks_all(missing: set[str], name: str, module: torch.nn.Module) -> bool:
    """Whether every weight of a module is missing."""
    return all(f"{name}.{own}" in missing for own, _ in module.named_parameters())


def unstored(model: PreTrainedModel, config: Any) -> set[str]:
    """Parameters of `model` that a checkpoint lacks, judging by the class that wrote it; reads no weights."""
    writer = getattr(transformers, (config.architectures or [""])[0], None)
    if writer is None:
        return set()
    with torch.device("meta"):
        stored = writer._from_config(config)
    prefix = f"{model.base_model_prefix}."
    bare = {name.removeprefix(prefix) for name, _ in stored.named_parameters()}
    return {name for name, _ in model.named_parameters() if name.removeprefix(prefix) not in bare}
