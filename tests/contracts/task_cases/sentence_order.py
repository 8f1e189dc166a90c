"""Documents of two and more sentences, with and without token types."""

from __future__ import annotations

from contracts.task_cases import TaskCase
from contracts.task_cases.masked_lm_nsp import INPUTS, ROWS

CASES = [TaskCase(model, {"name": "sentence_order"}, ROWS, ROWS[:4], INPUTS) for model in ("bert", "roberta")]
