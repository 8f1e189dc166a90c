"""Texts, and turns in a template; the first also of unequal lengths."""

from __future__ import annotations

from contracts.task_cases import TaskCase
from contracts.task_cases.instruction_tuning import TEMPLATE

THINGS = ("film", "soup", "plot")
PAIRS = [("lovely and wise", "dull"), ("kind", "a cold mess"), ("good", "bad")]
TEXTS = [
    {"prompt": f"how was the {thing}?", "chosen": f" the {thing} was {good}", "rejected": f" it was {bad}"}
    for thing in THINGS
    for good, bad in PAIRS
]
TURNS = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"].strip()}],
        "rejected": [{"role": "assistant", "content": row["rejected"].strip()}],
    }
    for row in TEXTS
]

CASES = [
    TaskCase("llama", {"name": "dpo", "max_new_tokens": 6}, TEXTS, TEXTS[:3], ["how was the staff?", "was it"]),
    TaskCase(
        "gpt2",
        {"name": "dpo", "max_new_tokens": 6, "loss_type": "ipo", "chat_template": TEMPLATE},
        TURNS,
        TURNS[:3],
        ["how was the staff?", TURNS[0]["prompt"]],
        max_length=64,
    ),
]
