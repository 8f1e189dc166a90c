"""Only whole checkpoints are resumed from."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.training.checkpoints import MANIFEST, damage, newest_whole, seal


def write(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"):
        (checkpoint / name).write_bytes(f"{name} {step}".encode())
    seal(checkpoint)
    return checkpoint


def test_newest_by_step_not_by_name(tmp_path: Path) -> None:
    write(tmp_path, 9)
    newest = write(tmp_path, 100)
    assert newest_whole(tmp_path) == (newest, [])


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) == (None, [])
    assert newest_whole(tmp_path / "absent") == (None, [])


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    older, newer = write(tmp_path, 5), write(tmp_path, 6)
    (newer / name).unlink()
    assert newest_whole(tmp_path) == (older, [f"'{newer}' is not whole: {name} is missing"])


def test_truncated_file_is_named(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 5)
    (checkpoint / "optimizer.pt").write_bytes(b"")
    assert damage(checkpoint) == "optimizer.pt has changed since it was written"


def test_unsealed_checkpoint_was_cut_off(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 5)
    (checkpoint / MANIFEST).unlink()
    assert damage(checkpoint) == f"{MANIFEST} is missing, so writing was cut off"


def test_unreadable_manifest_is_damage_not_a_crash(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 5)
    (checkpoint / MANIFEST).write_text('{"optimizer.pt": ')
    assert damage(checkpoint) == f"{MANIFEST} is cut off"
