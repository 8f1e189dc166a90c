"""Hidden states on disk, by digests of what they were computed from: written once, read by every run that asks alike.

Files are written whole and renamed, and never changed; each process adds its own. What is read is compared with a
checksum; a file in which a value differs is forgotten and deleted, so that its states are computed anew.
"""

from __future__ import annotations

import os
import shutil
import uuid
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftkit.artifacts.places import staging_dir, trunks_dir

KEY_BYTES = 16
_WAITING_BYTES = 32 * 2**20
"""States that are gathered in memory before they make a file: what a killed process loses at most."""
_SPARE_BYTES = 2**30
"""Disk that is left to others."""


class StateStore:
    """Hidden states (tokens, width) by digests.

    Args:
        name: of the model part that computes them: its own folder in the cache.
        budget_bytes: disk for the states of all model parts together.
    """

    def __init__(self, name: str, *, budget_bytes: int) -> None:
        self.folder = trunks_dir() / name
        self.budget_bytes = budget_bytes
        self.problem: str | None = None
        """Why no more states are kept; None while they are."""
        self.damaged = 0
        """Files that were found damaged, and deleted."""
        self._files: dict[bytes, _File] = {}
        self._waiting: dict[bytes, Tensor] = {}
        self._waiting_bytes = 0
        for path in sorted(self.folder.glob("*.safetensors")):
            self._take_in(path)
        if self._files:
            os.utime(self.folder)  # the last to be deleted where room is needed

    def __len__(self) -> int:
        """How many states there are."""
        return len(self._files.keys() | self._waiting.keys())

    def get(self, key: bytes) -> Tensor | None:
        """States (tokens, width), not to be changed; None where there are none."""
        if key in self._waiting:
            return self._waiting[key]
        file = self._files.get(key)
        if file is None:
            return None
        states = file.states(key)
        if states is None:
            self._forget(file)
        return states

    def put(self, key: bytes, states: Tensor) -> None:
        """Keep states (tokens, width) on the CPU, their memory given away."""
        if self.problem is None and key not in self._waiting:
            self._waiting[key] = states
            self._waiting_bytes += states.nbytes
            if self._waiting_bytes >= _WAITING_BYTES:
                self.flush()

    def flush(self) -> None:
        """Write what waits in memory."""
        waiting, size = self._waiting, self._waiting_bytes
        self._waiting, self._waiting_bytes = {}, 0
        if not waiting:
            return
        self.problem = make_room(self.folder, size, budget_bytes=self.budget_bytes)
        if self.problem is None:
            name = f"{uuid.uuid4().hex}.safetensors"
            staged = staging_dir() / name
            try:
                staged.parent.mkdir(parents=True, exist_ok=True)
                self.folder.mkdir(parents=True, exist_ok=True)
                save_file(_content(waiting), staged)
                staged.replace(self.folder / name)
                self._take_in(self.folder / name)
            except (OSError, SafetensorError) as problem:
                with suppress(OSError):  # there may be nothing, or nothing that can be deleted
                    staged.unlink()
                self.problem = f"the hidden states cannot be written: {problem}"

    def _take_in(self, path: Path) -> None:
        try:
            file = _File(path)
        except (SafetensorError, OSError, KeyError, ValueError):
            path.unlink(missing_ok=True)
            self.damaged += 1
        else:
            self._files |= dict.fromkeys(file.places, file)

    def _forget(self, damaged: _File) -> None:
        self._files = {key: file for key, file in self._files.items() if file is not damaged}
        damaged.path.unlink(missing_ok=True)
        self.damaged += 1


def make_room(folder: Path, more: int, *, budget_bytes: int) -> str | None:
    """Let `folder` grow by so many bytes, if need be at the expense of the oldest beside it; why not, or None."""
    sizes = {other: _size(other) for other in trunks_dir().glob("*") if other.is_dir()}
    wanted = sizes.pop(folder, 0) + more
    if wanted > budget_bytes:
        return f"the hidden states would take {wanted / 2**30:.3g} GiB; training.trunk_cache_gib allows less"
    for oldest in sorted(sizes, key=_last_used):
        if wanted + sum(sizes.values()) <= budget_bytes:
            break
        shutil.rmtree(oldest, ignore_errors=True)
        del sizes[oldest]
    there = next(parent for parent in folder.parents if parent.exists())
    if shutil.disk_usage(there).free < more + _SPARE_BYTES:
        return f"the hidden states need {more / 2**30:.3g} GiB more, and the disk of '{there}' is almost full"
    return None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*") if path.exists())


def _last_used(folder: Path) -> float:
    return folder.stat().st_mtime if folder.exists() else 0.0


class _File:
    """Some of the states, mapped into memory."""

    def __init__(self, path: Path) -> None:
        found = load_file(path)
        self.path = path
        index = [found[name] for name in ("keys", "lengths", "checks")]
        if found["index_check"].item() != _check(*index):
            raise ValueError(f"'{path}' is damaged")
        keys, lengths, self.checks = index
        self.parts = torch.split(found["states"], lengths.tolist())
        self.places = {bytes(key): place for place, key in enumerate(keys.numpy())}
        self.sound = [False] * len(self.places)

    def states(self, key: bytes) -> Tensor | None:
        """None: they are not what was written."""
        place = self.places[key]
        states: Tensor = self.parts[place]
        if not self.sound[place]:
            if _check(states) != self.checks[place].item():
                return None
            self.sound[place] = True
        return states


def _content(states: Mapping[bytes, Tensor]) -> dict[str, Tensor]:
    index = {
        "keys": torch.tensor([list(key) for key in states], dtype=torch.uint8),
        "lengths": torch.tensor([len(part) for part in states.values()]),
        "checks": torch.tensor([_check(part) for part in states.values()]),
    }
    return index | {"index_check": torch.tensor(_check(*index.values())), "states": torch.cat(list(states.values()))}


def _check(*tensors: Tensor) -> int:
    check = 0
    for tensor in tensors:
        check = zlib.crc32(raw(tensor), check)
    return check


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
