"""Hidden states on disk: found again, told apart, and kept within bounds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.artifacts.places import staging_dir, trunks_dir
from peftkit.training.execution.state_store import StateStore
from peftkit.training.execution.trunk import Batch

GIB = 2**30


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def filled(name: str, *numbers: int, tokens: int = 3, budget_bytes: int = GIB) -> StateStore:
    store = StateStore(name, budget_bytes=budget_bytes)
    for number in numbers:
        store.put(key(number), torch.full((tokens, 2), float(number)))
    store.flush()
    return store


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_are_found_again(dtype: torch.dtype) -> None:
    states = {key(place): torch.randn(place + 1, 5).to(dtype) for place in range(4)}
    store = StateStore("part", budget_bytes=GIB)
    for name, value in states.items():
        store.put(name, value)
        assert store.get(name) is value, "before it is written"
    store.flush()
    again = StateStore("part", budget_bytes=GIB)
    assert len(again) == 4
    for name, value in states.items():
        found = again.get(name)
        assert found is not None
        assert found.dtype == dtype
        assert torch.equal(found, value)
    assert again.get(key(9)) is None
    assert not list(staging_dir().glob("*"))


def test_writers_at_the_same_time_keep_what_both_have_written() -> None:
    one, other = StateStore("part", budget_bytes=GIB), StateStore("part", budget_bytes=GIB)
    for number, store in enumerate((one, other, one, other)):
        store.put(key(number), torch.full((1, 2), float(number)))
    one.put(key(7), torch.zeros(1, 2))
    other.put(key(7), torch.zeros(1, 2))
    one.flush()
    other.flush()
    assert len(list((trunks_dir() / "part").iterdir())) == 2
    assert len(StateStore("part", budget_bytes=GIB)) == 5


def test_files_deleted_by_others_stay_readable() -> None:
    store = filled("part", 1)
    shutil.rmtree(trunks_dir())
    found = store.get(key(1))
    assert found is not None
    assert torch.equal(found, torch.ones(3, 2))


def test_the_oldest_parts_make_room() -> None:
    for age, name in enumerate(("new", "old")):
        filled(name, 1, tokens=1000)
        os.utime(trunks_dir() / name, (1e9 - age, 1e9 - age))
    size = sum(path.stat().st_size for path in (trunks_dir() / "old").iterdir())
    store = filled("part", 1, tokens=1000, budget_bytes=int(2.5 * size))
    assert store.problem is None
    assert sorted(path.name for path in trunks_dir().iterdir()) == ["new", "part"]


def test_no_more_is_written_than_allowed() -> None:
    store = filled("part", 1, 2, tokens=1000, budget_bytes=15_000)
    assert store.problem is not None
    assert "training.trunk_cache_gib allows less" in store.problem
    assert not list(trunks_dir().glob("*/*"))
    store.put(key(3), torch.zeros(1, 2))
    assert len(store) == 0


def test_a_full_disk_ends_the_writing_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peftkit.training.execution.state_store.save_file", full)
    store = filled("part", 1)
    assert "No space left on device" in str(store.problem)


def test_an_almost_full_disk_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10 * GIB, 9 * GIB, GIB))
    assert "is almost full" in str(filled("part", 1).problem)


IDS = torch.tensor([[5, 6, 7], [5, 6, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def test_rows_are_told_by_their_real_tokens() -> None:
    batch = Batch.of({"input_ids": IDS, "attention_mask": MASK, "return_dict": True, "labels": None})
    longer = Batch.of({"input_ids": torch.tensor([[5, 6, 9, 9]]), "attention_mask": torch.tensor([[1, 1, 0, 0]])})
    assert batch is not None
    assert longer is not None
    assert batch.counts == [3, 2]
    assert batch.keys[0] != batch.keys[1]
    assert longer.keys == batch.keys[1:], "neither padding nor what stands there counts"


@pytest.mark.parametrize(
    "change",
    [
        lambda given: given | {"token_type_ids": torch.ones_like(IDS)},
        lambda given: given | {"input_ids": IDS + 1},
    ],
)
def test_rows_that_differ(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    given: dict[str, Any] = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": torch.zeros_like(IDS)}
    first, second = Batch.of(given), Batch.of(change(given))
    assert first is not None
    assert second is not None
    assert not set(first.keys) & set(second.keys)


@pytest.mark.parametrize(
    "change",
    [
        {"attention_mask": MASK.flip(1)},
        {"attention_mask": torch.tensor([[1, 0, 1], [1, 1, 1]])},
        {"attention_mask": MASK[:, None, None, :]},
        {"input_ids": None, "inputs_embeds": torch.zeros(2, 3, 4)},
        {"inputs_embeds": torch.zeros(2, 3, 4)},
        {"attention_mask": MASK.float()},
        {"past_key_values": object()},
        {"use_cache": True},
        {"output_hidden_states": True},
        {"position_ids": torch.arange(3)[None]},
        {"scale": 2.0},
    ],
)
def test_what_is_not_told_row_by_row(change: dict[str, Any]) -> None:
    assert Batch.of({"input_ids": IDS, "attention_mask": MASK} | change) is None


def test_a_folder_that_cannot_be_made_ends_the_writing_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "file"))
    assert "cannot be written" in str(filled("part", 1).problem)
