from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from hub_server import HubServer
from tiny_artifacts import MODEL_FILES, safetensors

from peftkit.artifacts import locate_model, locate_tokenizer
from peftkit.errors import ArtifactError


def test_only_safe_files_of_a_model_are_fetched(hub_server: HubServer) -> None:
    rest = [
        "pytorch_model.bin",
        "onnx/model.onnx",
        "tf_model.h5",
        "flax_model.msgpack",
        "modeling_x.py",
        "a/config.json",
    ]
    repository = hub_server.add_model("owner/model", {**MODEL_FILES, **{name: b"x" for name in rest}})

    found = locate_model("owner/model")

    assert sorted(hub_server.downloads()) == sorted(MODEL_FILES)
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == MODEL_FILES
    assert (found.record.origin, found.record.revision, found.record.note) == ("hub", repository.commit, None)
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(MODEL_FILES.items())]
    assert found.record.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_python_files_are_fetched_only_with_trust_remote_code(hub_server: HubServer) -> None:
    hub_server.add_model("owner/model", {**MODEL_FILES, "modeling_x.py": b"pass"})
    assert not (locate_model("owner/model").path / "modeling_x.py").exists()
    assert (locate_model("owner/model", trust_remote_code=True).path / "modeling_x.py").read_bytes() == b"pass"


def test_tokenizer_comes_without_weights_and_the_model_later_with_them(hub_server: HubServer) -> None:
    hub_server.add_model("owner/model", MODEL_FILES)
    assert sorted(path.name for path in locate_tokenizer("owner/model").path.iterdir()) == [
        "config.json",
        "tokenizer.json",
    ]
    assert (locate_model("owner/model").path / "model.safetensors").is_file()
    assert hub_server.downloads() == ["config.json", "model.safetensors", "tokenizer.json"]


def test_cached_model_needs_no_network(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_server.add_model("owner/model", MODEL_FILES)
    first = locate_model("owner/model")
    hub_server.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert locate_model("owner/model") == first
    assert locate_model("owner/model", revision=first.record.revision) == first
    assert hub_server.requests == []


def test_broken_off_download_goes_on_with_the_missing_file_only(hub_server: HubServer) -> None:
    repository = hub_server.add_model("owner/model", MODEL_FILES)
    repository.broken.add("model.safetensors")
    with pytest.raises(
        ArtifactError, match=r"hub: the download broke off .*500.*; running again fetches only the files"
    ):
        locate_model("owner/model")
    repository.broken.clear()
    hub_server.requests.clear()

    found = locate_model("owner/model")

    assert hub_server.downloads() == ["model.safetensors"]
    assert (found.path / "model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]


def test_partial_snapshot_is_not_taken_for_cached(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_server.add_model("owner/model", {**MODEL_FILES, "special_tokens_map.json": b"{}"})
    folder = locate_model("owner/model").path
    (folder / "special_tokens_map.json").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        ArtifactError, match=r"is incomplete: 'special_tokens_map.json' is missing\n.*offline mode is on"
    ):
        locate_model("owner/model")


def test_sharded_model_needs_every_shard_of_its_index(hub_server: HubServer) -> None:
    shards = {f"model-0000{n}-of-00002.safetensors": safetensors(struct.pack("<f", n)) for n in (1, 2)}
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors.index.json": index}
    hub_server.add_model("owner/whole", {**files, **shards})
    assert sorted(path.name for path in locate_model("owner/whole").path.glob("*.safetensors")) == sorted(shards)

    shards.popitem()
    hub_server.add_model("owner/torn", {**files, **shards})
    with pytest.raises(ArtifactError, match=r"'owner/torn' on the hub is incomplete: .*model-00002-of-00002"):
        locate_model("owner/torn")


def test_truncated_weights_are_named_with_the_blob_to_delete(hub_server: HubServer) -> None:
    hub_server.add_model("owner/model", MODEL_FILES)
    weights = (locate_model("owner/model").path / "model.safetensors").resolve()
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(
        ArtifactError, match=f"'{weights}' is damaged: it has {size - 1} bytes instead of {size}; delete"
    ):
        locate_model("owner/model")
    weights.unlink()
    assert (locate_model("owner/model").path / "model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]


def test_snapshot_of_other_programs_is_judged_by_its_files(hub_server: HubServer, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub-cache" / "models--owner--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(b"{}")
    (snapshot / "model.safetensors").write_bytes(safetensors())
    with pytest.raises(ArtifactError, match=r"hub cache: the copy in .* is incomplete: it has no tokenizer files"):
        locate_model("owner/model")
    (snapshot / "tokenizer.json").write_bytes(b"{}")
    hub_server.requests.clear()
    assert locate_model("owner/model").record.revision == commit
    assert hub_server.requests == []


def test_pickle_weights_are_refused_before_anything_is_fetched(hub_server: HubServer) -> None:
    hub_server.add_model("owner/old", {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"pickle"})
    for locate in (locate_model, locate_tokenizer):
        with pytest.raises(ArtifactError, match=r"'owner/old' has no safetensors weights, only pytorch_model\.bin"):
            locate("owner/old")
    assert "pytorch_model.bin" not in hub_server.downloads()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "is an adapter, not a base model"),
        ({"m.Q4_0.gguf": b""}, r"holds GGUF files only \(m\.Q4_0\.gguf\)"),
        ({"notes.md": b""}, r"has no config\.json \(it has: notes\.md\)"),
        ({"config.json": b"{}", "tokenizer.json": b"{}"}, r"has no weights \(model\.safetensors\)"),
    ],
)
def test_repository_that_is_no_model_says_what_it_is(
    hub_server: HubServer, files: dict[str, bytes], message: str
) -> None:
    hub_server.add_model("owner/thing", files)
    with pytest.raises(ArtifactError, match=f"'owner/thing' {message}|'owner/thing' is not a model: it {message}"):
        locate_model("owner/thing")


def test_missing_repository_bad_revision_and_gate_are_told_apart(hub_server: HubServer) -> None:
    hub_server.add_model("owner/model", MODEL_FILES)
    hub_server.add_model("owner/gated", MODEL_FILES).gated = True
    page = hub_server.url
    with pytest.raises(ArtifactError, match=rf"hub: there is no model at {page}/owner/absent \(HTTP 404\): misspelt"):
        locate_model("owner/absent")
    with pytest.raises(ArtifactError, match=f"at revision 'v9':(.|\n)*hub: {page}/owner/model has no revision 'v9'"):
        locate_model("owner/model", revision="v9")
    with pytest.raises(ArtifactError, match=f"hub: it is gated: accept its terms at {page}/owner/gated, then log in"):
        locate_model("owner/gated")


def test_revision_is_fetched_beside_the_newest(hub_server: HubServer) -> None:
    repository = hub_server.add_model("owner/model", MODEL_FILES)
    old = locate_model("owner/model")
    repository.files = {**MODEL_FILES, "config.json": b'{"model_type": "gpt2"}'}
    repository.revisions = ("main", "v2")
    assert locate_model("owner/model") == old
    new = locate_model("owner/model", revision="v2")
    assert new.record.revision == repository.commit != old.record.revision
    assert (new.path / "config.json").read_bytes() == b'{"model_type": "gpt2"}'
