"""What a model gives for one collated batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from peftkit.labels import IGNORED
from peftkit.tasks import Task


def logits_of(model: PreTrainedModel, batch: Mapping[str, torch.Tensor], *, task: Task) -> torch.Tensor:
    """Logits of one collated batch, float32 on the CPU."""
    with torch.inference_mode(), autocast(model):
        return task.logits(task.forward(model, _there(model, batch))).float().cpu()


def read_batch(model: PreTrainedModel, batch: Mapping[str, torch.Tensor], *, task: Task) -> list[Any]:
    """What the task reads of one collated batch; see `Task.read`."""
    with torch.inference_mode(), autocast(model):
        there = _there(model, batch)
        return task.read(model, there, task.forward(model, there))


def labelled_logits(output: Any, batch: Mapping[str, Any], *, task: Task) -> torch.Tensor:
    """Logits (positions, classes) at positions that have a label."""
    logits, labels = task.aligned(task.logits(output), batch["labels"])
    chosen: torch.Tensor = logits[labels != IGNORED]
    return chosen


def _there(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def autocast(model: PreTrainedModel) -> torch.autocast:
    """Arithmetic in the type of 16-bit base weights, so that float32 adapters fit them; idle on float32 models."""
    dtype = model.get_base_model().dtype if hasattr(model, "peft_config") else model.dtype
    return torch.autocast(model.device.type, dtype=dtype, enabled=dtype in (torch.bfloat16, torch.float16))
