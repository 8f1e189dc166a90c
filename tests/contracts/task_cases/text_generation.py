"""Prompts and completions, on decoders and on an encoder-decoder."""

from __future__ import annotations

from contracts.task_cases import TaskCase

ROWS = [
    {"prompt": "the soup was", "completion": "cold"},
    {"prompt": "the film was", "completion": "long and dull"},
    {"prompt": "we loved", "completion": "every minute of it"},
    {"prompt": "a joyous", "completion": "film"},
    {"prompt": "kind staff and a", "completion": "lovely soup"},
    {"prompt": "the plot is", "completion": "a mess"},
    {"prompt": "funny, wise", "completion": "and kind"},
    {"prompt": "the staff was rude and the soup was", "completion": "cold"},
    {"prompt": "nobody", "completion": "loved the plot"},
]
TASK = {"name": "text_generation", "max_new_tokens": 6}
CASES = [
    TaskCase(model, TASK, train=ROWS, validation=ROWS[:3], inputs=["the soup", "a very long film about a kind", "we"])
    for model in ("gpt2", "llama", "t5")
]
