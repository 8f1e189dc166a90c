"""What is timed: the same rows in the same batches for every contestant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_MINILM = {"id": "sentence-transformers/all-MiniLM-L6-v2", "max_length": 128}
_SMOLLM2 = {"id": "HuggingFaceTB/SmolLM2-135M-Instruct", "max_length": 320}
_SST2 = {"train": "sst2/train.tsv#2000", "header": False, "column_names": ["text", "label"], "quoting": False}
_GSM8K = {"train": "gsm8k/train.jsonl#200", "columns": {"instruction": "question", "output": "answer"}}
_QUERY_VALUE = {"name": "lora", "rank": 8, "target_modules": ["query", "value"]}
_ALL_LINEAR = {"name": "lora", "rank": 16, "alpha": 32, "target_modules": "all-linear"}


@dataclass(frozen=True)
class Work:
    """One row of the table.

    Args:
        model, data, method: of the recipe; files of `data` are below the data folder.
        batch_size: rows of a step.
        steps: that are timed.
        warmup: steps before them, which are not.
        padded_to: length to which the contestant `trainer_padded` pads.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    task: str
    method: str | dict[str, Any]
    batch_size: int
    steps: int
    warmup: int = 2
    padded_to: int = 128


WORKS = {
    "sst2_lora": Work(_MINILM, _SST2, "sequence_classification", _QUERY_VALUE, batch_size=32, steps=30),
    "gsm8k_lora_batch4": Work(_SMOLLM2, _GSM8K, "instruction_tuning", _ALL_LINEAR, batch_size=4, steps=5, warmup=1),
    "gsm8k_lora_batch8": Work(_SMOLLM2, _GSM8K, "instruction_tuning", _ALL_LINEAR, batch_size=8, steps=4, warmup=1),
    "imdb_lora": Work(
        {**_MINILM, "max_length": 512},
        {"name": "hub", "id": "stanfordnlp/imdb", "splits": {"train": "train#400"}},
        "sequence_classification",
        _QUERY_VALUE,
        batch_size=16,
        steps=5,
        warmup=1,
        padded_to=512,
    ),
    "head_only": Work(_MINILM, _SST2, "sequence_classification", "head_only", batch_size=32, steps=310),
    "last_2_layers": Work(
        _MINILM, _SST2, "sequence_classification", {"name": "last_layers", "layers": 2}, batch_size=32, steps=310
    ),
}
"""By name; `head_only` and `last_2_layers` are five epochs."""
