from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hub_server import HubServer
from tiny_artifacts import MODEL_FILES, safetensors, write_files

from peftkit.artifacts import locate_model, locate_tokenizer
from peftkit.artifacts.model_files import safetensors_problem
from peftkit.errors import ArtifactError


def test_existing_folder_wins_over_the_hub(
    hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.add_model("owner/model", MODEL_FILES)
    monkeypatch.chdir(tmp_path)
    folder = write_files(tmp_path / "owner" / "model", MODEL_FILES)
    found = locate_model("owner/model")
    assert (found.path, found.record.origin, found.record.revision) == (folder, "local", None)
    assert hub_server.requests == []


def test_digest_covers_what_is_used_and_nothing_else(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "m", MODEL_FILES)
    model, tokenizer = locate_model(str(folder)).record.sha256, locate_tokenizer(str(folder)).record.sha256
    write_files(folder, {"README.md": b"x", "checkpoint-1/model.safetensors": b"x", "pytorch_model.bin": b"x"})
    assert locate_model(str(folder)).record.sha256 == model
    (folder / "model.safetensors").write_bytes(safetensors(b"1234"))
    assert locate_model(str(folder)).record.sha256 != model
    assert locate_tokenizer(str(folder)).record.sha256 == tokenizer


@pytest.mark.parametrize("locator", ["./absent", "~/absent-peftkit-model", "/absent/model", "a/b/c", "absent.gguf"])
def test_path_that_leads_nowhere_is_named(locator: str) -> None:
    with pytest.raises(ArtifactError, match=f"there is no file or folder '{locator}'"):
        locate_model(locator)


def test_mistyped_path_suggests_its_neighbour(tmp_path: Path) -> None:
    write_files(tmp_path / "my-model", MODEL_FILES)
    with pytest.raises(ArtifactError, match=f"did you mean '{tmp_path}/my-model'"):
        locate_model(f"{tmp_path}/my-modle")


@pytest.mark.parametrize("locator", ["", "a b", "owner/", "hf://owner/x", "a--b"])
def test_what_cannot_be_an_id_is_refused(locator: str) -> None:
    with pytest.raises(
        ArtifactError, match=f"'{locator}' is neither an existing folder nor a hub id|no file or folder"
    ):
        locate_model(locator)


def test_file_that_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {"model.safetensors": b""})
    with pytest.raises(ArtifactError, match=r"is a file, but no \.gguf file; give the folder that holds the model"):
        locate_model(str(tmp_path / "model.safetensors"))


def test_missing_shard_and_missing_tokenizer_are_named(tmp_path: Path) -> None:
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    files = {"config.json": b"{}", "model.safetensors.index.json": index}
    folder = write_files(tmp_path / "m", {**files, "model-00001-of-00002.safetensors": safetensors()})
    with pytest.raises(ArtifactError, match="is incomplete: it has no tokenizer files"):
        locate_model(str(folder))
    write_files(folder, {"vocab.txt": b"[PAD]"})
    with pytest.raises(ArtifactError, match=r"the weights 'model-00002-of-00002\.safetensors' are missing"):
        locate_model(str(folder))
    (folder / "model.safetensors.index.json").write_bytes(b"[]")
    with pytest.raises(ArtifactError, match=r"model\.safetensors\.index\.json' cannot be read"):
        locate_model(str(folder))


WHOLE = safetensors()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (WHOLE, None),
        (struct.pack("<Q", 2) + b"{}", None),
        (WHOLE[:-1], f"it has {len(WHOLE) - 1} bytes instead of {len(WHOLE)}"),
        (WHOLE + b"x", f"it has {len(WHOLE) + 1} bytes instead of {len(WHOLE)}"),
        (WHOLE[:20], "it is cut short (20 bytes)"),
        (b"", "it is cut short (0 bytes)"),
        (struct.pack("<Q", 2) + b"[]", "its header cannot be read"),
        (struct.pack("<Q", 2) + b"\xff\xff", "its header cannot be read"),
    ],
)
def test_safetensors_header_must_fit_the_size(tmp_path: Path, content: bytes, problem: str | None) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert safetensors_problem(path) == problem
