"""Questions whose answers stand in their contexts, one of which is longer than a window; and some without an answer."""

from __future__ import annotations

from contracts.task_cases import TaskCase


def _row(question: str, context: str, answer: str | None) -> dict[str, object]:
    answers = {"text": [], "answer_start": []}
    if answer is not None:
        answers = {"text": [answer], "answer_start": [context.index(answer)]}
    return {"question": question, "context": context, "answers": answers}


LONG = "The film was long and dull. " * 8 + "The soup came from Oslo. " + "The staff was kind. " * 4
ROWS = [
    _row("Who loved the film?", "Anna loved the film.", "Anna"),
    _row("How was the soup?", "The soup was cold and the staff was rude.", "cold"),
    _row("How was the staff?", "The soup was cold and the staff was rude.", "rude"),
    _row("What was a mess?", "The plot was a mess, but we loved it.", "The plot"),
    _row("Who came?", "Nobody came.", "Nobody"),
    _row("What was lovely?", "The long film was lovely.", "The long film"),
    _row("How long was it?", "It was very long.", "very long"),
    _row("Who was kind?", "The staff was kind.", "The staff"),
]
INPUTS = [("Who loved it?", "Anna loved the film."), ("How was it?", LONG), {"question": "Who?", "context": "Bo."}]
FURTHER = [
    _row("Where did the soup come from?", LONG, "Oslo"),
    _row("Who loved the plot?", "Anna loved the film.", None),
]
TASK = {"name": "extractive_qa", "stride": 8, "no_answer": True}
CASES = [
    TaskCase(model, TASK, train=ROWS + more, validation=ROWS[:2] + more, inputs=INPUTS)
    for model, more in (("bert", FURTHER[:1]), ("roberta", FURTHER))
]
