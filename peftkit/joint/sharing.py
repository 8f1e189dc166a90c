"""The models of several tasks as one: what they have in common are the same tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peftkit.errors import CapabilityError
from peftkit.models import LoadedModel


class SharedModel(nn.Module):
    """Models that share weights, one for each task; each is whole, and can be used and saved by itself.

    Args:
        models: by task.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.tasks = nn.ModuleDict(dict(models))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Recompute activations in the backward pass of every model."""
        for model in self.tasks.values():
            model.activation_checkpointing_enable(**options)  # type: ignore[operator] # models of transformers have it


def shared(loaded: Iterable[tuple[str, LoadedModel]], *, adapters_too: bool) -> dict[str, LoadedModel]:
    """The models of all tasks, what earlier ones have replacing what later ones have under the same name.

    Heads, which are new to the base, stay each task's own.

    Args:
        loaded: tasks with their models, the tuning method applied; each is asked for when those before it share their
            weights, so that no more than two bases are in memory.
        adapters_too: whether what trains beside the heads is shared, or the frozen weights only.

    Raises:
        CapabilityError: two tasks need the base in different forms.
    """
    known: dict[str, tuple[str, Tensor]] = {}
    models: dict[str, LoadedModel] = {}
    for task, part in loaded:
        in_common = 0
        for name, table, own in _places(part):
            weight = table[own]
            if not adapters_too and (weight.requires_grad or not isinstance(weight, nn.Parameter)):
                continue
            owner, first = known.setdefault(name, (task, weight))
            if first is not weight and hasattr(weight, "CB"):  # bitsandbytes hands them over to the first that computes
                raise CapabilityError(
                    f"tasks {owner!r} and {task!r} cannot share weights of 8 bits, which belong to one model; use  "
                    "quantization: nf4"
                )
            if first.shape != weight.shape:
                raise CapabilityError(
                    f"tasks {owner!r} and {task!r} cannot share {name}, which is {tuple(first.shape)} for one and "
                    f"{tuple(weight.shape)} for the other; where the method starts from training rows, write  "
                    "adapters: separate"
                )
            in_common += first is not weight and first.requires_grad == adapters_too
            table[own] = first
        if models and not in_common:
            raise CapabilityError(_strangers(next(iter(models.items())), (task, part)))
        models[task] = part
    return models


def _places(part: LoadedModel) -> Iterator[tuple[str, dict[str, Tensor], str]]:
    """Name of each parameter and buffer that is not of the head, with the table and the key in it that hold it."""
    heads = tuple(f".{head}." for head in part.head_modules)
    for path, module in part.model.named_modules():
        for table in (module._parameters, module._buffers):
            for own, weight in list(table.items()):
                name = f"{path}.{own}" if path else own
                if weight is not None and not any(head in f".{name}" for head in heads):
                    yield name, table, own


def _strangers(*parts: tuple[str, LoadedModel]) -> str:
    tasks = " and ".join(repr(task) for task, _ in parts)
    architectures = " and ".join(_architecture(part.model) for _, part in parts)
    return (
        f"tasks {tasks} have nothing to train together: {architectures} name the weights of the base differently, or "
        "the method trains heads only; choose tasks of one kind, another method, or  adapters: separate"
    )


def _architecture(model: Any) -> str:
    return type(model.get_base_model() if hasattr(model, "peft_config") else model).__name__
