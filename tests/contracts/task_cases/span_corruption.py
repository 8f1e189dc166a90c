"""Packed blocks, and each text for itself."""

from __future__ import annotations

from contracts.task_cases import TaskCase
from contracts.task_cases.causal_lm import ROWS

INPUTS = ("a <extra_id_0> film", "the staff was <extra_id_0> and the <extra_id_1> came late")
TASK = {"name": "span_corruption", "max_new_tokens": 6}
CASES = [TaskCase("t5", TASK | {"pack": pack}, ROWS, ROWS[:6], INPUTS) for pack in (True, False)]
