"""Features are made once for equal rows, tasks and tokenizers, and anew for others or where the file is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from peftkit.artifacts.cache import clear_entries, list_entries
from peftkit.artifacts.places import encodings_dir
from peftkit.tasks import Task, tasks
from peftkit.training import encoding
from peftkit.training.encoding import Encoder, Encoding

TEXTS = ["a fine film with words enough to be cut", "dull", "one that is long but not too long"]


@pytest.fixture(autouse=True)
def few_rows_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_ROWS_WORTH_KEEPING", 3)


@pytest.fixture
def tokenizer(checkpoint: Callable[[str], Path]) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint("bert"))


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The `max_length` of everything that is really encoded."""
    found: list[int] = []
    kind = type(classifier())
    original = kind.encode

    def encode(self: Task, rows: Dataset, reader: Any, max_length: int) -> Dataset:
        found.append(max_length)
        return original(self, rows, reader, max_length)

    monkeypatch.setattr(kind, "encode", encode)
    return found


def classifier(**options: Any) -> Task:
    return tasks.build({"name": "sequence_classification", "labels": ["bad", "good"], **options})


def rows(texts: list[str] = TEXTS) -> Dataset:
    return Dataset.from_dict({"text": texts, "label": ["good", "bad", "good"][: len(texts)]})


def encode(tokenizer: Any, *, task: Task | None = None, data: Dataset | None = None, max_length: int = 6) -> Encoding:
    """As a new process would."""
    return Encoder(task or classifier(), tokenizer, max_length=max_length).encode(rows() if data is None else data)


def test_equal_rows_are_read_from_a_mapped_file_in_place_of_being_encoded(tokenizer: Any, encodings: list[int]) -> None:
    wanted = classifier().encode(rows(), tokenizer, 6)
    whole = classifier().encode(rows(), tokenizer, 512)["input_ids"]
    encodings.clear()
    first = encode(tokenizer)
    assert encodings == [6, 2**30]  # the second only for rows that may have been cut
    second = encode(tokenizer)
    assert len(encodings) == 2
    for found in (first, second):
        assert found.features.to_dict() == wanted.to_dict()
        assert found.features.cache_files
        assert found.lengths is not None
        assert found.lengths.tolist() == [len(ids) for ids in whole]
    data, encoder = rows(), Encoder(classifier(), tokenizer, max_length=7)
    assert encoder.encode(data) is encoder.encode(data)


@pytest.mark.parametrize("changed", ["rows", "max_length", "options", "tokenizer", "truncation", "code"])
def test_whatever_decides_about_the_features_makes_them_anew(
    tokenizer: Any, encodings: list[int], monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    encode(tokenizer)
    encodings.clear()
    if changed == "rows":
        encode(tokenizer, data=rows([*TEXTS[:2], "another"]))
    elif changed == "max_length":
        encode(tokenizer, max_length=7)
    elif changed == "options":
        encode(tokenizer, task=classifier(labels=["good", "bad"]))
    else:
        if changed == "tokenizer":
            tokenizer.add_tokens(["film"])
        elif changed == "truncation":
            tokenizer.truncation_side = "left"
        else:
            monkeypatch.setattr(encoding, "_program", lambda: ["later"])
        encode(tokenizer)
    assert encodings


def test_a_damaged_file_is_told_of_and_made_anew(
    tokenizer: Any, encodings: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = encode(tokenizer).features.to_dict()
    (path,) = encodings_dir().glob("*/*.arrow")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    encodings.clear()
    assert encode(tokenizer).features.to_dict() == wanted
    assert encodings
    assert "are damaged; encoding them again" in capfd.readouterr().err
    encodings.clear()
    encode(tokenizer)
    assert not encodings


def test_few_rows_plugins_and_tokenizers_in_python_keep_nothing(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(tokenizer, data=rows(TEXTS[:2]))
    with monkeypatch.context() as patch:
        patch.setattr(type(classifier()), "__module__", "plugin")
        encode(tokenizer)
    monkeypatch.setattr(encoding, "_said_by", lambda tokenizer: None)
    encode(tokenizer)
    assert not encodings_dir().exists()


def test_a_full_disk_is_told_of_and_stops_nothing(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("peftkit.artifacts.encodings._SPARE_BYTES", 2**60)
    assert len(encode(tokenizer).features) == 3
    assert "encoded rows are not kept: they need" in capfd.readouterr().err


def test_what_was_not_used_for_longest_goes_first(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tokenizer)
    (first,) = encodings_dir().iterdir()
    monkeypatch.setattr("peftkit.artifacts.encodings.LIMIT_BYTES", sum(p.stat().st_size for p in first.iterdir()))
    encode(tokenizer, max_length=7)
    (left,) = encodings_dir().iterdir()
    assert left != first


def test_the_cache_lists_and_clears_encodings(tokenizer: Any) -> None:
    encode(tokenizer)
    (entry,) = list_entries()
    assert (entry.name, entry.kind) == ("encodings", "computed")
    assert entry.bytes > 0
    assert [gone.name for gone in clear_entries("encodings")] == ["encodings"]
    assert not encodings_dir().exists()


def test_several_lists_in_a_cell_count_as_the_longest() -> None:
    from peftkit.tasks.columns import cell_lengths

    features = Dataset.from_dict({"input_ids": [[[1], [1, 2, 3]], [[1, 2], [1]]], "labels": [0, 1]})
    assert np.array_equal(cell_lengths(features, ("input_ids", "input_ids_1")), [3, 2])
