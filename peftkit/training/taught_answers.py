"""Answers that a teacher writes for the training rows: learning from what it says, not from how sure it is.

Kim & Rush 2016, arXiv:1606.07947. Every answer is kept on disk as soon as it is there, by the weights and the options
that wrote it, so that no run has it written twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Value

from peftkit.artifacts.places import answers_dir, locked, writing
from peftkit.data import LoadedData
from peftkit.data.progress_bars import hidden_progress_bars
from peftkit.models import find_device
from peftkit.outputs import read_batch
from peftkit.recipe import Recipe
from peftkit.tasks import Encoded, Task
from peftkit.training.teacher import Teacher


def with_taught_answers(recipe: Recipe, loaded: LoadedData, *, task: Task) -> LoadedData:
    """The rows with the answers of the recipe's teacher in those that train, where the recipe asks for them."""
    options = recipe.distillation
    if options is None or options.answers == "rows":
        return loaded
    teacher = Teacher.find(recipe, task)
    rows, answer = loaded.splits["train"], str(task.label_column)
    asked = [json.dumps(cell, ensure_ascii=False) for cell in rows[task.text_columns[0]]]
    texts = _texts(teacher, asked, batch_size=recipe.training.eval_batch_size)
    taught = [texts[key] or cell for key, cell in zip(asked, rows[answer], strict=True)]
    taught = [cell if isinstance(cell, str) else cell[0] for cell in taught]
    empty = sum(not texts[key] for key in asked)
    kept = f"; {empty} were empty, and those rows keep their own" if empty else ""
    note = f"the teacher '{teacher.title}' wrote the answers of {len(rows) - empty} of {len(rows)} training rows{kept}"
    changed = rows.remove_columns(answer).add_column(answer, taught, feature=Value("string"))
    splits = DatasetDict({**loaded.splits, "train": changed.select_columns(rows.column_names)})
    return replace(loaded, splits=splits, notes=(*loaded.notes, note))


def _texts(teacher: Teacher, asked: list[str], *, batch_size: int) -> dict[str, str]:
    """What the teacher answers, by what it was asked."""
    told = hashlib.sha256(f"{teacher.identity} {teacher.task.model_dump_json()} {teacher.spec.max_length}".encode())
    name = f"answers-{told.hexdigest()[:32]}"
    with locked(name):
        path = answers_dir() / f"{name}.jsonl"
        found = _read(path)
        missing = [key for key in dict.fromkeys(asked) if key not in found]
        if missing:
            with writing():
                path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as kept:
                for key, text in _written(teacher, missing, batch_size=batch_size):
                    found[key] = text
                    kept.write(json.dumps([key, text], ensure_ascii=False) + "\n")
                    kept.flush()
    return found


def _read(path: Path) -> dict[str, str]:
    """What is there; a last line that was cut off is taken away."""
    if not path.is_file():
        return {}
    whole, _, torn = path.read_text("utf-8").rpartition("\n")
    if torn:
        path.write_text(f"{whole}\n" if whole else "", "utf-8")
    return dict(json.loads(line) for line in whole.splitlines())


def _written(teacher: Teacher, asked: list[str], *, batch_size: int) -> Iterator[tuple[str, str]]:
    """Questions with their answers, shortest first: less padding."""
    model = teacher.load(find_device())
    task, tokenizer = teacher.task, teacher.tokenizer
    with hidden_progress_bars():
        rows = Dataset.from_dict({task.text_columns[0]: [json.loads(key) for key in asked]})
        features = task.encode(rows, tokenizer, teacher.spec.max_length)
    lengths = [len(ids) for ids in features["input_ids"]]
    order = sorted(range(len(asked)), key=lengths.__getitem__)
    collate = task.evaluation_collator(tokenizer)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        outputs: list[Any] = read_batch(model, collate(features.select(chosen).to_list()), task=task)
        answers = task.answers(outputs, Encoded(rows.select(chosen), features.select(chosen), tokenizer))
        yield from ((asked[place], answer["text"]) for place, answer in zip(chosen, answers, strict=True))
