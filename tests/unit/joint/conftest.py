"""Recipes of several tasks on the tiny checkpoints, on rows of a few words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from peftkit.multi_task import MultiTask
from peftkit.yaml_source import parse_yaml

Values = dict[str, Any]
MakeValues = Callable[..., Values]
_WORDS = [
    "Anna/B-person lives/O in/O Oslo/B-place",
    "the/O film/O of/O Anna/B-person was/O long/O",
    "Oslo/B-place and/O Paris/B-place are/O far/O apart/O",
    "kind/O staff/O in/O Oslo/B-place",
    "nobody/O loved/O Paris/B-place",
    "Anna/B-person",
    "we/O saw/O Anna/B-person and/O Oslo/B-place again/O",
]
_PAIRS = [
    ("a warm story", "a kind story", 4.5),
    ("a fast app", "a fast phone", 4.0),
    ("the soup was cold", "the soup was not warm", 4.8),
    ("a great guide", "a dull film", 0.5),
    ("the music was lovely", "the screen is bright", 0.2),
    ("we loved it", "we had a great evening", 3.0),
]
TAGGED = [
    {"tokens": [word.split("/")[0] for word in line.split()], "tags": [word.split("/")[1] for word in line.split()]}
    for line in _WORDS
]
LIKENESS = [{"text": one, "text_pair": other, "label": score} for one, other, score in _PAIRS]


TEXTS = [{"text": one} for one, _, _ in _PAIRS]


@pytest.fixture
def known_tasks(sentiment_files: dict[str, Path], tmp_path: Path) -> Values:
    """What a recipe says of each task, by name."""

    def data(rows: Sequence[Values], file: str) -> Values:
        path = tmp_path / file
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return {"name": "files", "train": str(path), "validation": str(path)}

    sentiment = {"name": "files", **{split: str(path) for split, path in sentiment_files.items()}}
    texts = data(TEXTS, "texts.jsonl")
    return {
        "mood": {"task": "sequence_classification", "data": sentiment},
        "tags": {"task": "token_classification", "data": data(TAGGED, "tags.jsonl")},
        "likeness": {
            "task": {"name": "sequence_classification", "problem_type": "regression"},
            "data": data(LIKENESS, "pairs.jsonl"),
        },
        "blanks": {"task": "masked_lm", "data": texts},
        "texts": {"task": "causal_lm", "data": texts},
        "spans": {"task": "span_corruption", "data": texts},
    }


@pytest.fixture
def joint_values(checkpoint: Callable[[str], Path], known_tasks: Values) -> MakeValues:
    """Function from names of tasks to the values of a recipe; keywords change its top level."""

    def make(*names: str, model: str = "bert", **changes: Any) -> Values:
        return {
            "name": "joint",
            "model": {"id": str(checkpoint(model)), "max_length": 32},
            "tasks": {name: dict(known_tasks[name]) for name in names},
            "method": {"name": "lora", "rank": 4},
            "training": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "logging_steps": 1},
            **changes,
        }

    return make


@pytest.fixture
def joint(joint_values: MakeValues) -> Callable[..., MultiTask]:
    """Function from what `joint_values` takes to the recipe."""

    def make(*names: str, **changes: Any) -> MultiTask:
        text = yaml.safe_dump(joint_values(*names, **changes))
        return MultiTask.from_source(parse_yaml(text, origin="joint.yaml"))

    return make
