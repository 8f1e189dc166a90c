"""Streams of texts: what is read, in which order, in how much memory, and that an interruption changes nothing."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from peftkit.data import ORIGIN, LoadedData, sources
from peftkit.errors import DataError, PeftkitError, RecipeError
from peftkit.recipe import Recipe
from peftkit.tasks import DRAW, ROW, tasks
from peftkit.training import RunOptions, resume, run, streaming
from peftkit.training.streaming import StreamedFeatures

RunCut = Callable[[Recipe, Path, int], str]
QUIET = RunOptions(show_progress=False)
LINES = ["we loved the soup", "a dull mess of a film", "the music is lovely", "nothing happens in the town"]


def load(train: Any, **options: Any) -> LoadedData:
    return sources.build({"name": "text_stream", "train": train, **options}).load()


def test_rows_are_lines_or_paragraphs_of_all_files_with_their_places(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n \r\nthree\r\n")
    with gzip.open(tmp_path / "b.txt.gz", "wt") as packed:
        packed.write("\nfour")
    pattern = f"{tmp_path}/*.txt*"
    for unit, expected in (
        ("line", [("one", 1), ("two", 2), ("three", 5), ("four", 2)]),
        ("paragraph", [("one\ntwo", 1), ("three", 5), ("four", 2)]),
    ):
        loaded = load(pattern, text_rows=unit)
        assert loaded.stream is not None
        found = [(text, int(origin.rpartition(":")[2])) for text, origin in loaded.stream.texts()]
        assert found == expected
        assert list(loaded.stream.texts()) == list(loaded.stream.texts())
        assert loaded.splits["train"]["text"] == [text for text, _ in expected]
        assert loaded.splits["train"][ORIGIN][-1].endswith("b.txt.gz:2")
    assert [len(record.sha256 or "") for record in load(pattern).artifacts] == [64, 64]


def test_the_train_split_holds_the_first_rows_and_a_note_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(LINES))
    loaded = load(f"{tmp_path}/a.txt", checked_rows=2, validation=f"{tmp_path}/a.txt")
    assert loaded.splits["train"]["text"] == LINES[:2]
    assert loaded.splits["validation"]["text"] == LINES
    assert "its first 2 rows are checked" in loaded.notes[0]


class Words:
    """A task that makes every row one feature."""

    draws = True

    def encode(self, rows: Dataset, tokenizer: Any, max_length: int) -> Dataset:
        return Dataset.from_dict({"words": [text.split() for text in rows["text"]], ROW: range(len(rows))})


def features(loaded: LoadedData, *, task: Any = None, tokenizer: Any = None, seed: int = 0) -> StreamedFeatures:
    data: Any = SimpleNamespace(task=task or Words(), tokenizer=tokenizer, loaded=loaded)
    assert loaded.stream is not None
    return StreamedFeatures(data, loaded.stream, seed=seed, max_length=16)


def test_every_row_comes_once_a_pass_in_an_order_of_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_CHUNK_CHARACTERS", 20)
    (tmp_path / "a.txt").write_text("\n".join(f"row {number}" for number in range(50)))
    loaded = load(f"{tmp_path}/a.txt", text_rows="line", shuffle_buffer=10)

    def order(seed: int) -> list[int]:
        return [int(feature["words"][1]) for feature in islice(features(loaded, seed=seed), 140)]

    first = order(0)
    assert first == order(0) != order(1)
    assert first[:40] != sorted(first[:40])
    # The buffer holds back ten: of two and a half passes every row has come two or three times, give or take one.
    assert {first.count(number) for number in range(50)} <= {1, 2, 3, 4}
    assert len(set(first[:60])) > 40
    plain = load(f"{tmp_path}/a.txt", text_rows="line", shuffle_buffer=1)
    in_order = [int(feature["words"][1]) for feature in islice(features(plain), 60)]
    assert in_order == [*range(50), *range(10)]


def test_draws_are_those_of_the_place_in_the_stream(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    made = list(islice(features(load(f"{tmp_path}/a.txt", text_rows="line"), seed=3), 6))
    assert [feature[DRAW] for feature in made] == [[3, place] for place in range(6)]
    assert ROW not in made[0]


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_CHUNK_CHARACTERS", 20_000)
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt2)
    peaks = {}
    for megabytes in (0.25, 2):
        file = tmp_path / f"{megabytes}.txt"
        file.write_text("\n".join(LINES * int(megabytes * 1e6 / len("\n".join(LINES)))))
        loaded = load(str(file), text_rows="line", shuffle_buffer=100, checked_rows=10)
        stream = iter(features(loaded, task=tasks.build("causal_lm"), tokenizer=tokenizer))
        next(stream)
        tracemalloc.start()
        seen = sum(len(feature["input_ids"]) for feature in islice(stream, int(megabytes * 5000)))
        peaks[megabytes] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seen > megabytes * 70_000
    assert peaks[2] < 1.3 * peaks[0.25]
    assert peaks[2] < 3e6


def recipe(model: Path, folder: Path, task: Any = "masked_lm", **sections: Any) -> Recipe:
    (folder / "a.txt").write_text("\n".join(LINES * 10))
    (folder / "held.txt").write_text("\n".join(LINES))
    data = {"name": "text_stream", "train": f"{folder}/a.txt", "text_rows": "line", "shuffle_buffer": 5}
    values = {
        "name": "stream",
        "model": {"id": str(model), "max_length": 16},
        "task": task,
        "data": data | {"validation": f"{folder}/held.txt", **sections.pop("data", {})},
        "method": {"name": "lora", "dropout": 0.1},
        "training": {"max_steps": 12, "batch_size": 4, "evaluate_every": 4, "learning_rate": 0.01, "logging_steps": 1}
        | sections.pop("training", {}),
    }
    return Recipe.from_values(values | sections, origin="test")


@pytest.mark.training
@pytest.mark.parametrize("step", [3, 8])
@pytest.mark.parametrize(("name", "task", "workers"), [("bert", "masked_lm", 0), ("gpt2", "causal_lm", 2)])
def test_interrupted_run_resumes_to_the_same_bytes(
    checkpoint: Callable[[str], Path], tmp_path: Path, run_cut: RunCut, *, name: str, task: str, workers: int, step: int
) -> None:
    """Twelve steps are more than one pass."""
    made = recipe(checkpoint(name), tmp_path, task, training={"data_workers": workers})
    whole = run(made, tmp_path / "whole", options=QUIET)
    run_cut(made, tmp_path / "cut", step)
    resumed = resume(tmp_path / "cut", options=QUIET)
    one, two = (next((tmp_path / folder).glob("*/*.safetensors")).read_bytes() for folder in ("whole", "cut"))
    assert one == two
    assert resumed.metrics == whole.metrics
    assert whole.cost.steps == 12


BAD_RECIPES: dict[str, tuple[dict[str, Any], type[PeftkitError], str]] = {
    "no end": ({"training": {"max_steps": None}}, RecipeError, r"training\.max_steps: a stream of texts has no end"),
    "by length": ({"training": {"batching": "group_by_length"}}, RecipeError, "lengths of a stream are not known"),
    "pairs": ({"task": "masked_lm_nsp"}, RecipeError, "'masked_lm_nsp' cannot learn from a stream of texts"),
    "no file": ({"data": {"train": "gone.txt"}}, DataError, "no file 'gone.txt'"),
    "no match": ({"data": {"train": "gone/*.txt"}}, DataError, r"no file matches 'gone/\*\.txt'"),
    "no train": ({"data": {"train": None}}, RecipeError, "train"),
    "files as rows": ({"data": {"text_rows": "file"}}, RecipeError, "text_rows"),
    "no buffer": ({"data": {"shuffle_buffer": 0}}, RecipeError, "shuffle_buffer"),
    "nothing checked": ({"data": {"checked_rows": 0}}, RecipeError, "checked_rows"),
}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_bad_recipes_are_refused_before_training(case: str, tiny_bert: Path, tmp_path: Path) -> None:
    sections, error, message = BAD_RECIPES[case]
    with pytest.raises(error, match=message):  # noqa: PT012 # some are refused when read
        made = recipe(tiny_bert, tmp_path, **sections)
        run(made, tmp_path / "run", options=QUIET)


BAD_FILES = {
    "blank": (b"\n \n", "holds only blank lines"),
    "not text": (b"one\n\xff\xfe\n", r"a\.txt:\d+ or soon after is not utf-8 .*set its real encoding"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(case: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[case]
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(f"{tmp_path}/a.txt")


def test_a_torn_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\n".join(LINES * 1000).encode())[:-20])
    with pytest.raises(DataError, match=r"a\.txt\.gz:\d+ cannot be read"):
        load(f"{tmp_path}/a.txt.gz", checked_rows=10_000)
