"""Answers by themselves; the estimate of the divergence is made from the rows of a micro-batch, see `loss_type`."""

from __future__ import annotations

from contracts.task_cases import TaskCase
from contracts.task_cases.dpo import TEXTS

ROWS = [
    {"prompt": row["prompt"], "completion": row[column], "label": column == "chosen"}
    for row in TEXTS[:5]
    for column in ("chosen", "rejected")
]
CASES = [
    TaskCase("llama", {"name": "kto", "max_new_tokens": 6}, ROWS, ROWS[:4], ["how was the staff?"], accumulates=False),
    TaskCase(
        "gpt2", {"name": "kto", "loss_type": "apo_zero_unpaired", "max_new_tokens": 6}, ROWS, ROWS[:4], ["was it"]
    ),
]
