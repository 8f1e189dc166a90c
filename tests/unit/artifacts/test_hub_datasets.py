from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import HubServer
from tiny_artifacts import write_files

from peftkit.artifacts import locate_dataset
from peftkit.errors import ArtifactError

CARD = b"""---
configs:
- config_name: small
  data_files:
  - split: train
    path: small/train-*.csv
  - split: test
    path: [small/test.csv]
- config_name: large
  data_files: large/*.csv
dataset_info:
- config_name: large
  features:
  - name: text
    dtype: string
  - name: label
    dtype: {class_label: {names: {'0': bad, '1': good}}}
---
# A card
"""
FILES = {
    "README.md": CARD,
    "small/train-00000-of-00002.csv": b"text,label\na,0\n",
    "small/train-00001-of-00002.csv": b"text,label\nb,1\n",
    "small/test.csv": b"text,label\nc,1\n",
    "large/all.csv": b"text,label\nd,1\ne,0\n",
    "picture.png": b"x",
}


def loaded(folder: Path, config: str | None = None) -> dict[str, list[dict[str, object]]]:
    import datasets

    datasets.disable_progress_bars()
    found = datasets.load_dataset(str(folder), name=config, cache_dir=str(folder.parent / "arrow"))
    return {split: rows.to_list() for split, rows in found.items()}


def test_only_the_asked_configuration_is_fetched_and_loads(hub_server: HubServer) -> None:
    repository = hub_server.add_dataset("owner/set", FILES)

    large = locate_dataset("owner/set", config="large")

    assert hub_server.downloads() == ["README.md", "large/all.csv"]
    assert (large.record.origin, large.record.revision) == ("hub", repository.commit)
    assert loaded(large.path, "large") == {"train": [{"text": "d", "label": 1}, {"text": "e", "label": 0}]}
    small = locate_dataset("owner/set", config="small")
    rows = loaded(small.path, "small")
    assert rows["train"] == [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    assert rows["test"] == [{"text": "c", "label": 1}]
    assert small.record.sha256 != large.record.sha256


def test_label_names_of_the_card_survive(hub_server: HubServer) -> None:
    import datasets

    hub_server.add_dataset("owner/set", FILES)
    folder = locate_dataset("owner/set", config="large").path
    found = datasets.load_dataset(str(folder), name="large", cache_dir=str(folder.parent / "arrow"))
    assert found["train"].features["label"].names == ["bad", "good"]


def test_unknown_and_unstated_configurations_list_those_that_exist(hub_server: HubServer) -> None:
    hub_server.add_dataset("owner/set", FILES)
    hub_server.add_dataset("owner/plain", {"train.csv": b"text\na\n"})
    with pytest.raises(ArtifactError, match=r"no configuration 'tiny' \(it has: small, large\); correct  data\.config"):
        locate_dataset("owner/set", config="tiny")
    with pytest.raises(ArtifactError, match=r"several configurations \(small, large\); choose one"):
        locate_dataset("owner/set")
    with pytest.raises(ArtifactError, match="'owner/plain' has no configurations, so none called 'tiny'"):
        locate_dataset("owner/plain", config="tiny")


def test_default_configuration_is_taken_when_none_is_asked_for(hub_server: HubServer) -> None:
    card = CARD.replace(b"config_name: large\n  data_files", b"config_name: large\n  default: true\n  data_files")
    hub_server.add_dataset("owner/set", {**FILES, "README.md": card})
    assert sorted(loaded(locate_dataset("owner/set").path)["train"][0]) == ["label", "text"]
    assert hub_server.downloads() == ["README.md", "large/all.csv"]


def test_data_set_without_a_card_is_fetched_whole(hub_server: HubServer) -> None:
    hub_server.add_dataset(
        "owner/set", {"train.jsonl": b'{"text": "a"}\n', "test.jsonl": b'{"text": "b"}\n', "x.py": b"1", "y.png": b"1"}
    )
    found = locate_dataset("owner/set")
    assert hub_server.downloads() == ["test.jsonl", "train.jsonl"]
    assert loaded(found.path) == {"train": [{"text": "a"}], "test": [{"text": "b"}]}


def test_cached_data_set_needs_no_network(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_server.add_dataset("owner/set", FILES)
    first = locate_dataset("owner/set", config="small")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert locate_dataset("owner/set", config="small") == first
    with pytest.raises(ArtifactError, match=r"is incomplete: 'large/all\.csv' is missing"):
        locate_dataset("owner/set", config="large")


def test_snapshot_of_other_programs_serves_only_if_the_hub_cannot(
    hub_server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub-cache" / "datasets--owner--set"
    write_files(repository, {"refs/main": commit.encode(), f"snapshots/{commit}/train.csv": b"text\nold\n"})
    with monkeypatch.context() as offline:
        offline.setenv("HF_HUB_OFFLINE", "1")
        found = locate_dataset("owner/set")
        assert found.record.revision == commit
        assert "whether files are missing could not be checked" in str(found.record.note)
    newest = hub_server.add_dataset("owner/set", {"train.csv": b"text\nnew\n", "test.csv": b"text\nx\n"})
    assert locate_dataset("owner/set").record.revision == newest.commit

    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit / "train.csv").rename(
        repository / "snapshots" / commit / "train-00000-of-00002.csv"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ArtifactError, match=r"the data file 'train-00001-of-00002\.\.\.' is missing"):
        locate_dataset("owner/set")


def test_loading_script_and_cut_parquet_are_refused(hub_server: HubServer) -> None:
    hub_server.add_dataset("owner/script", {"script.py": b"pass"})
    hub_server.add_dataset("owner/cut", {"train.parquet": b"PAR1 and no end"})
    with pytest.raises(ArtifactError, match=r"only a loading script \(script\.py\).*refs/convert/parquet"):
        locate_dataset("owner/script")
    with pytest.raises(ArtifactError, match=r"is damaged: it is not a whole Parquet file \(15 bytes\); delete"):
        locate_dataset("owner/cut")


def test_pattern_of_the_card_that_matches_nothing_is_named(hub_server: HubServer) -> None:
    files = {"README.md": b"---\nconfigs:\n- config_name: a\n  data_files: data/*.csv\n---\n", "train.csv": b"text\n"}
    hub_server.add_dataset("owner/set", files)
    with pytest.raises(ArtifactError, match=r"names 'data/\*\.csv', which is not among its files"):
        locate_dataset("owner/set")


def test_broken_card_is_named(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "set", {"README.md": b"---\nconfigs: [\n---\n", "train.csv": b"text\n"})
    with pytest.raises(ArtifactError, match=r"README\.md' is not valid YAML"):
        locate_dataset(str(folder))


def test_local_folder_and_file(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "set", FILES)
    found = locate_dataset(str(folder), config="small")
    assert (found.path, found.record.origin, found.record.revision) == (folder, "local", None)
    before = found.record.sha256
    (folder / "small" / "test.csv").write_bytes(b"text,label\nchanged,1\n")
    assert locate_dataset(str(folder), config="small").record.sha256 != before
    with pytest.raises(ArtifactError, match=r"test\.csv' is a file; load it with  data: \{name: files"):
        locate_dataset(str(folder / "small" / "test.csv"))
