"""What the untuned model makes of the rows, for tasks that compare with it; computed once, before training."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.data import DataLoader

from peftkit.data.progress_bars import hidden_progress_bars
from peftkit.models import on_device
from peftkit.tasks import BASE
from peftkit.training.setup import Setup

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def with_base_values(setup: Setup) -> Setup:
    """`setup` with the column `BASE` in its features where the task needs it; its model has not been trained yet.

    The model is taken as the method leaves it, so that a method which starts elsewhere than at the base's own weights,
    such as LoRA from principal components, is compared with where it starts.
    """
    if not setup.recipe.task.needs_base:
        return setup
    task, data = setup.recipe.task, setup.data
    model = on_device(setup.model, setup.environment.device).eval()
    collate = task.evaluation_collator(data.tokenizer)
    kind = _TYPES.get(setup.environment.precision, torch.float32)
    features = {}
    for split, encoded in data.features.items():
        values: list[list[float]] = []
        loader = DataLoader(encoded, batch_size=setup.recipe.training.eval_batch_size, collate_fn=collate)
        for batch in loader:
            there = {name: tensor.to(model.device) for name, tensor in batch.items()}
            # As in training: other rounding would look like a difference between the models.
            with torch.inference_mode(), torch.autocast(model.device.type, kind, enabled=kind != torch.float32):
                values += task.base_values(model, there)
        with hidden_progress_bars():
            features[split] = encoded.add_column(BASE, values)
    return replace(setup, data=replace(data, features=features))
