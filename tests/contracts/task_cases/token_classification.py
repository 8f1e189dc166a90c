"""Tagged words, with and without a CRF."""

from __future__ import annotations

from contracts.task_cases import TaskCase

SENTENCES = [
    "Anna/B-person Berg/I-person lives/O in/O Oslo/B-place",
    "the/O film/O of/O Anna/B-person was/O long/O",
    "Oslo/B-place and/O Paris/B-place are/O far/O apart/O",
    "kind/O staff/O",
    "Berg/B-person went/O to/O New/B-place York/I-place City/I-place",
    "nobody/O loved/O Paris/B-place",
    "Anna/B-person",
    "we/O saw/O Anna/B-person Berg/I-person and/O Oslo/B-place again/O",
    "a/O dull/O mess/O",
]
ROWS = [
    {
        "tokens": [word.rpartition("/")[0] for word in line.split()],
        "tags": [word.rpartition("/")[2] for word in line.split()],
    }
    for line in SENTENCES
]
INPUTS = [["Anna", "saw", "Oslo"], "Berg lives in Paris, not in Oslo.", ["kind"]]
CASES = [
    TaskCase(model, {"name": "token_classification", **options}, train=ROWS, validation=ROWS[:3], inputs=INPUTS)
    for model, options in (
        ("bert", {}),
        ("roberta", {"label_subwords": "all"}),
        ("distilbert", {"crf": True}),
        ("llama", {"crf": True, "learn_as": "BIOES"}),
    )
]
