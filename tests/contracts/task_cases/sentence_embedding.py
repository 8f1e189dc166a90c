"""Pairs with a score, pairs without, and single texts."""

from __future__ import annotations

from contracts.task_cases import TaskCase

PAIRS = [
    ("the film was long", "it was a long film", 4.5),
    ("the soup was cold", "a cold soup", 5.0),
    ("the plot is a mess", "we loved the soup", 0.0),
    ("kind staff", "the staff was kind", 4.0),
    ("a lovely film", "a dull mess", 0.5),
    ("the soup is lovely", "the film is lovely", 2.0),
    ("we loved it", "nobody loved it", 1.5),
    ("rude", "kind", 1.0),
    ("a film", "a long film", 3.0),
]
SCORED = [{"text": one, "text_pair": two, "score": score} for one, two, score in PAIRS]
PLAIN = [{"text": one, "text_pair": two} for one, two, _ in PAIRS]
HARD = [{**row, "negative": "a plot without a film"} for row in PLAIN]
SINGLE = [{"text": row["text"]} for row in PLAIN]
INPUTS = ["a film", "the soup was cold and the staff was rude", "kind"]
# In-batch negatives: a micro-batch has fewer of them than the whole batch, so that both differ by design.
CASES = [
    TaskCase("bert", {"name": "sentence_embedding"}, train=SCORED, validation=SCORED[:3], inputs=INPUTS),
    TaskCase(
        "llama",
        {"name": "sentence_embedding", "dimensions": [16, 32]},
        train=SCORED,
        validation=SCORED[:3],
        inputs=INPUTS,
    ),
    TaskCase(
        "roberta", {"name": "sentence_embedding"}, train=HARD, validation=HARD[:3], inputs=INPUTS, accumulates=False
    ),
    TaskCase(
        "bert",
        {"name": "sentence_embedding", "objective": "simcse"},
        train=SINGLE,
        validation=PLAIN[:3],
        inputs=[("a film", "a long film"), ("kind", "rude")],
        accumulates=False,
    ),
]
