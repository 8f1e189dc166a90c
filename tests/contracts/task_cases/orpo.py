"""Pairs, without a base to compare with while training."""

from __future__ import annotations

from contracts.task_cases import TaskCase
from contracts.task_cases.dpo import TEXTS

CASE = TaskCase("llama", {"name": "orpo", "max_new_tokens": 6}, TEXTS, TEXTS[:3], ["how was the staff?"])
