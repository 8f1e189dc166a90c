"""Documents and summaries."""

from __future__ import annotations

from contracts.task_cases import TaskCase

ROWS = [
    {"document": f"the {thing} was {word} and everybody said that it was {word}", "summary": f"a {word} {thing}"}
    for thing in ("film", "soup", "plot")
    for word in ("long", "dull", "lovely")
]
CASES = [
    TaskCase(
        model,
        {"name": "summarization", "max_new_tokens": 6},
        train=ROWS,
        validation=ROWS[:3],
        inputs=["the soup was cold", "the film was long and dull and everybody said that it was dull"],
    )
    for model in ("llama", "t5")
]
