"""Pairs of sentences; one row has two right translations."""

from __future__ import annotations

from contracts.task_cases import TaskCase

ROWS = [
    {"source": "the soup is cold", "target": ["die suppe ist kalt"]},
    {"source": "the film is long", "target": ["der film ist lang", "lang ist der film"]},
    {"source": "the staff is kind", "target": ["das personal ist nett"]},
    {"source": "a lovely film", "target": ["ein lieber film"]},
] * 2 + [{"source": "a soup", "target": ["eine suppe"]}]
CASES = [
    TaskCase(
        model,
        {"name": "translation", "max_new_tokens": 6, "num_beams": beams},
        train=ROWS,
        validation=ROWS[:3],
        inputs=["the soup", "the long film is cold and the staff is kind"],
    )
    for model, beams in (("t5", 1), ("t5", 3), ("gpt2", 1))
]
