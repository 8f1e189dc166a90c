"""Checkpoints that can be trusted: each carries a manifest, and only a whole one is resumed from.

The engine writes checkpoints in place, takes the newest folder even if it is torn, and skips a missing optimizer or
random state without a word; the manifest is written last and names every file with its digest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from peftkit.artifacts.digests import file_sha256
from peftkit.methods import TuningMethod

TUNED_FILE = "tuned.safetensors"
"""Every trainable parameter of an adapter, and what its method keeps. peft saves what an adapter needs to be used, not
always what it needs to be trained on: networks behind a prompt and pruned ranks are missing."""
_EXTRA = "method."
MANIFEST = "peftkit_manifest.json"


def save_tuned(model: Any, method: TuningMethod, checkpoint: Path) -> None:
    """Add the trainable parameters of adapters to a checkpoint; a model that trains as a whole has them there."""
    if not isinstance(model, PreTrainedModel):
        tensors = {
            name: weight.detach().contiguous() for name, weight in model.named_parameters() if weight.requires_grad
        }
        extra = {f"{_EXTRA}{name}": tensor.contiguous() for name, tensor in method.state(model).items()}
        save_file(tensors | extra, checkpoint / TUNED_FILE)


def restore_tuned(model: Any, method: TuningMethod, checkpoint: Path) -> bool:
    """Put the trainable parameters of a checkpoint back; False if it holds none of their own."""
    if not (checkpoint / TUNED_FILE).is_file():
        return False
    saved = load_file(checkpoint / TUNED_FILE, device=str(model.device))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.copy_(saved[name])
    method.restore(model, {name.removeprefix(_EXTRA): saved[name] for name in saved if name.startswith(_EXTRA)})
    return True


def seal(checkpoint: Path) -> None:
    """Write the manifest of a checkpoint that is complete."""
    manifest = {path.name: file_sha256(path) for path in sorted(checkpoint.iterdir()) if path.is_file()}
    manifest.pop(MANIFEST, None)
    (checkpoint / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every file is as it was written.

    Returns:
        The checkpoint, or None; and why newer ones were passed over.
    """
    found = sorted(folder.glob("checkpoint-*"), key=_step, reverse=True)
    passed_over: list[str] = []
    for checkpoint in found:
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint, passed_over
        passed_over.append(f"'{checkpoint}' is not whole: {problem}")
    return None, passed_over


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file; None if nothing is."""
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return f"{MANIFEST} is missing, so writing was cut off"
    try:
        digests = json.loads(manifest.read_text("utf-8"))
    except ValueError:
        return f"{MANIFEST} is cut off"
    for name, digest in digests.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if file_sha256(path) != digest:
            return f"{name} has changed since it was written"
    return None


def _step(checkpoint: Path) -> int:
    digits = checkpoint.name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1
