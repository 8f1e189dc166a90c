"""Answers that are generated anew: two models that train on other micro-batches answer otherwise."""

from __future__ import annotations

from contracts.task_cases import TaskCase
from contracts.task_cases.dpo import TEXTS, TURNS
from contracts.task_cases.instruction_tuning import TEMPLATE

TASK = {"name": "grpo", "group_size": 2, "max_new_tokens": 6}

CASES = [
    TaskCase(
        "llama",
        {**TASK, "rewards": [{"name": "length", "words": 3}]},
        [{"prompt": row["prompt"]} for row in TEXTS],
        [{"prompt": row["prompt"]} for row in TEXTS[:3]],
        ["how was the staff?", "was it"],
        accumulates=False,
    ),
    TaskCase(
        "gpt2",
        {
            **TASK,
            "rewards": ["exact_answer", {"name": "regex", "pattern": "a"}],
            "chat_template": TEMPLATE,
        },
        [{"prompt": row["prompt"], "answer": "3"} for row in TURNS],
        [{"prompt": row["prompt"], "answer": "3"} for row in TURNS[:3]],
        ["how was the staff?"],
        accumulates=False,
    ),
]
