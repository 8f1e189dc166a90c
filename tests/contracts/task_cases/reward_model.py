"""A decoder on texts and on turns, and an encoder."""

from __future__ import annotations

from contracts.task_cases import TaskCase
from contracts.task_cases.dpo import TEXTS, TURNS
from contracts.task_cases.instruction_tuning import TEMPLATE

ANSWERED = [
    {"prompt": "how was the staff?", "completion": " the staff was kind"},
    {"prompt": "how was the film?", "completion": " it was bad"},
]
CASES = [
    *(TaskCase(model, {"name": "reward_model"}, TEXTS, TEXTS[:3], ANSWERED) for model in ("llama", "bert")),
    TaskCase(
        "gpt2",
        {"name": "reward_model", "chat_template": TEMPLATE, "center": 0.01},
        TURNS,
        TURNS[:3],
        [[*TURNS[0]["prompt"], *TURNS[0]["chosen"]]],
        max_length=64,
    ),
]
