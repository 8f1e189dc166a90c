"""Documents of two and more sentences."""

from __future__ import annotations

from contracts.task_cases import TaskCase

TEXTS = (
    "the film begins in a small town by the sea. nothing happens there.",
    "we loved the soup. the staff was kind.",
    "a dull mess of a film! nobody had asked for it.",
    "funny, wise and kind. a film for long evenings.",
    "the staff was rude. the soup came late.",
    "nothing is as lovely as the evening light. we go there every year.",
    "a generous film. it has a heart.",
    "the music is lovely. the plot is not.",
    "the room was cold. the music was too loud for a talk. nothing came before the film was over. we left. it rained.",
)
ROWS = [{"text": text} for text in TEXTS]
INPUTS = (("the soup was cold", "we left"), ("a film", "a film without a heart and without a plot"))
CASE = TaskCase("bert", {"name": "masked_lm_nsp"}, ROWS, ROWS[:4], INPUTS)
