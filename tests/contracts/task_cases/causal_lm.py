"""Packed into blocks, and each text for itself."""

from __future__ import annotations

from contracts.task_cases import TaskCase

TEXTS = (
    "the film begins in a small town by the sea",
    "we loved the soup and the kind staff",
    "a dull mess of a film",
    "funny, wise and kind: a film for long evenings",
    "the staff was rude and the soup came late",
    "nothing is as lovely as the evening light",
    "a generous film with a heart",
    "the music is lovely and the plot is not",
    "the room was cold, the music too loud for a talk, and nothing that we had asked for came before the film was over",
) * 2
ROWS = [{"text": text} for text in TEXTS]
INPUTS = ("a lovely film", "we loved the soup but the staff was rude and the film was a mess", "dull")

CASES = [
    TaskCase("gpt2", {"name": "causal_lm"}, ROWS, ROWS[:6], INPUTS),
    TaskCase("llama", {"name": "causal_lm", "pack": False}, ROWS, ROWS[:6], INPUTS),
]
