"""Questions with two, three and four choices; labels as index, and as letters of choices inside the question."""

from __future__ import annotations

from contracts.task_cases import TaskCase


def _row(question: str, choices: list[str], label: int) -> dict[str, object]:
    return {"question": question, "choices": choices, "label": label}


ROWS = [
    _row("How was the soup?", ["cold", "a film", "kind staff"], 0),
    _row("Who loved the film?", ["the soup", "Anna"], 1),
    _row("What was a mess?", ["the plot", "rude", "lovely", "very long and generous"], 0),
    _row("Who came?", ["nobody", "long"], 0),
    _row("How long was it?", ["staff", "every minute", "very long"], 2),
    _row("Who was kind?", ["the mess", "the staff"], 1),
    _row("What was lovely?", ["dull", "the long film", "rude"], 1),
    _row("Was it dull?", ["yes", "no"], 1),
]
LETTERED = [
    {"question": f"{row['question']}\nOptions:\n(A) {row['choices'][0]}\n(B) {row['choices'][1]}", "label": letter}
    for row, letter in zip(ROWS, ["(A)", "(B)", "A", "a", "(B)", "B", "(B)", "no"], strict=True)
]
INPUTS = [
    ("Who loved it?", ["Anna", "the soup", "nobody", "the staff", "a film"]),
    {"question": "Was it long?", "choices": ["yes", "no"]},
    "How was the film?\n(A) dull\n(B) funny, wise and kind\n(C) rude",
]
CASES = [
    TaskCase(model, {"name": "multiple_choice"}, train=rows, validation=rows[:3], inputs=INPUTS)
    for model, rows in (("bert", ROWS), ("roberta", LETTERED), ("distilbert", ROWS))
]
