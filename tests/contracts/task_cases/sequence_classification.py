"""Three kinds of labels."""

from __future__ import annotations

from contracts.task_cases import TaskCase

TEXTS = (
    "a joyous film",
    "a dull mess",
    "kind staff and a lovely soup",
    "the plot is a mess",
    "we loved every minute of this long and generous film",
    "rude",
    "a film without a heart",
    "funny, wise and kind",
    "the soup was cold",
    "lovely",
)
INPUTS = ("a lovely film", "dull", "we loved the soup but the staff was rude and the film was a mess")


def _case(model: str, problem_type: str, labels: list[object]) -> TaskCase:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]
    task = {"name": "sequence_classification", "problem_type": problem_type}
    return TaskCase(model, task, train=rows, validation=rows[:3], inputs=INPUTS)


CASES = [
    _case("bert", "single_label", ["good", "bad"] * 5),
    _case("llama", "multi_label", [["food"], ["film", "food"]] * 5),
    _case("roberta", "regression", [0.5, 1.5, 3.0, 0.25, 2.0] * 2),
]
