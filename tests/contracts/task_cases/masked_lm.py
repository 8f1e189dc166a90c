"""Packed blocks with single tokens masked, and texts for themselves with whole words masked."""

from __future__ import annotations

from contracts.task_cases import TaskCase
from contracts.task_cases.causal_lm import ROWS

CASES = [
    TaskCase("bert", {"name": "masked_lm"}, ROWS, ROWS[:6], ("a [MASK] film", "the staff was [MASK] and the [MASK]")),
    TaskCase(
        "roberta",
        {"name": "masked_lm", "pack": False, "whole_word": True},
        ROWS,
        ROWS[:6],
        ("a<mask> film", "the staff was<mask> and the<mask>"),
    ),
    TaskCase("distilbert", {"name": "masked_lm", "mask_probability": 0.4}, ROWS, ROWS[:6]),
]
