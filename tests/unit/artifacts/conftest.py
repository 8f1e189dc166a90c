"""No test here reaches the network: the hub is unreachable or on loopback, the package index is a local folder."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hub_server import hub_server  # noqa: F401 - a fixture

from peftkit.artifacts import reachability
from peftkit.artifacts.mirrors import Mirror, all_mirrors


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(reachability, "_problems", {})


WheelMaker = Callable[[str, str, Mapping[str, bytes]], Path]


@pytest.fixture
def make_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelMaker:
    """Puts wheels into a folder that is the only place where pip looks."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    def make(name: str, version: str, files: Mapping[str, bytes]) -> Path:
        stem = f"{name.replace('-', '_')}-{version}"
        info = f"{stem}.dist-info"
        content = {
            **files,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{path},sha256={_urlsafe(data)},{len(data)}\n" for path, data in content.items())
        wheel = index / f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as packed:
            for path, data in {**content, f"{info}/RECORD": record.encode()}.items():
                packed.writestr(path, data)
        return wheel

    return make


def _urlsafe(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


@pytest.fixture
def set_mirrors(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the table of mirrors."""

    def replace(*table: Mirror) -> None:
        for module in ("mirrors", "wheel"):
            monkeypatch.setattr(f"peftkit.artifacts.{module}.all_mirrors", lambda: table)

    assert all_mirrors()
    return replace
