from __future__ import annotations

from pathlib import Path

import pytest
from tiny_artifacts import write_files

from peftkit.artifacts import cache_dir, clear_entries, list_entries, verify_entries
from peftkit.artifacts.entries import Entry, Origin, find_or_make
from peftkit.errors import ArtifactError


def made(name: str, files: dict[str, bytes]) -> Entry:
    origin = Origin(name=name, kind="model", locator="owner/model", origin="mirror", source="wheel x 1.0")
    return find_or_make(origin, lambda content: write_files(content, files) and None)


def test_listing_counts_files_and_bytes() -> None:
    assert list_entries() == []
    entry = made("model--a--1.0", {"one": b"12345", "sub/two": b"678"})
    manifest = (entry.folder / "manifest.json").stat().st_size
    (listed,) = list_entries()
    assert (listed.name, listed.kind, listed.files, listed.bytes) == ("model--a--1.0", "model", 2, 8 + manifest)
    assert (listed.path, listed.origin) == (entry.folder, "wheel x 1.0")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: (content / "one").write_bytes(b"1234!"), r"'one' has changed \(its SHA-256 differs\)"),
        (lambda content: (content / "one").write_bytes(b"1234"), "'one' has 4 bytes instead of 5"),
        (lambda content: (content / "sub" / "two").unlink(), "'sub/two' is missing"),
        (lambda content: (content / "three").write_bytes(b""), "'three' does not belong there"),
        (lambda content: (content.parent / "manifest.json").write_bytes(b"{"), "'manifest.json' is missing or unread"),
        (lambda content: (content.parent / "manifest.json").unlink(), r"'manifest\.json' is missing or unreadable"),
    ],
)
def test_damage_is_found_named_and_cleared(damage: object, message: str) -> None:
    made("model--b--1.0", {"one": b"12345"})
    content = made("model--a--1.0", {"one": b"12345", "sub/two": b"678"}).content
    assert [problem for _, problem in verify_entries()] == [None, None]
    damage(content)  # type: ignore[operator]  # parametrize passes plain objects

    found = {entry.name: problem for entry, problem in verify_entries()}
    assert found["model--b--1.0"] is None
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found["model--a--1.0"])
    with pytest.raises(ArtifactError, match=f"{message}.*peftkit cache clear model--a--1.0  and run again"):
        made("model--a--1.0", {}).artifact("owner/model")

    assert [entry.name for entry in clear_entries("model--a--1.0")] == ["model--a--1.0"]
    assert [entry.name for entry in list_entries()] == ["model--b--1.0"]
    made("model--a--1.0", {"one": b"12345"}).artifact("owner/model")


def test_unknown_name_is_not_cleared_but_suggested() -> None:
    with pytest.raises(ArtifactError, match=r"there is no cache entry 'x'; the cache .* is empty"):
        clear_entries("x")
    made("model--a--1.0", {"one": b"1"})
    with pytest.raises(ArtifactError, match=r"no cache entry 'model--a'; did you mean 'model--a--1\.0'\?"):
        clear_entries("model--a")
    assert len(list_entries()) == 1


def test_clearing_all_takes_leftovers_too() -> None:
    made("model--a--1.0", {"one": b"1"})
    made("model--b--1.0", {"one": b"1"})
    write_files(cache_dir() / "staging" / "model--c--1.0", {"content/half": b"1"})
    assert [entry.name for entry in clear_entries()] == ["model--a--1.0", "model--b--1.0"]
    assert list_entries() == []
    assert not (cache_dir() / "staging").exists()
    assert clear_entries() == []


def test_entry_that_breaks_off_does_not_exist_and_is_made_anew() -> None:
    def broken(content: Path) -> None:
        write_files(content, {"half": b"1"})
        raise KeyboardInterrupt

    origin = Origin(name="model--a--1.0", kind="model", locator="a", origin="mirror", source="wheel x 1.0")
    with pytest.raises(KeyboardInterrupt):
        find_or_make(origin, broken)
    assert list_entries() == []
    # What a killed process leaves behind must not slip into the next attempt.
    write_files(cache_dir() / "staging" / "model--a--1.0", {"content/stale": b"1"})
    assert set(made("model--a--1.0", {"one": b"1"}).manifest.files) == {"one"}


def test_unwritable_cache_is_a_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ArtifactError, match=rf"cannot write to the cache '{tmp_path}/file': .*set PEFTKIT_CACHE"):
        made("model--a--1.0", {"one": b"1"})


def test_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("PEFTKIT_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("PEFTKIT_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "peftkit"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / ".cache" / "peftkit"
