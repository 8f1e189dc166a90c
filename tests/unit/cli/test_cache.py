from __future__ import annotations

import json
from pathlib import Path

import pytest

from peftkit.artifacts import cache_dir
from peftkit.artifacts.entries import Origin, find_or_make
from peftkit.cli.entry import main


def add(name: str, files: dict[str, bytes]) -> Path:
    """An entry as a download leaves it."""

    def fill(content: Path) -> None:
        for file, data in files.items():
            (content / file).write_bytes(data)

    kind = "dataset" if name.startswith("dataset") else "model"
    origin = Origin(name=name, kind=kind, locator="org/x", origin="wheel", source="somelib 1.0")  # type: ignore[arg-type]  # kind is one of two literals
    return find_or_make(origin, fill).content


def test_list_shows_size_files_and_origin(capsys: pytest.CaptureFixture[str]) -> None:
    add("model--tiny", {"a.bin": b"x" * 3 * 2**20, "b.json": b"{}"})
    add("dataset--rows", {"rows.csv": b"text\nx\n"})
    assert main(["cache", "list"]) == 0
    header, first, second, total = capsys.readouterr().out.splitlines()
    assert header.split() == ["kind", "name", "size", "files", "origin"]
    assert first.split()[:2] == ["dataset", "dataset--rows"]
    assert second.split() == ["model", "model--tiny", "3.0", "MiB", "2", "somelib", "1.0"]
    assert total.startswith(f"2 in {cache_dir()}, 3.0 MiB")
    assert header.index("size") == second.index("3.0 MiB")


def test_an_empty_cache_is_said_to_be_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out == f"0 in {cache_dir()}, 0 B\n"
    assert main(["cache", "verify"]) == 0
    assert capsys.readouterr().out == "0 verified\n"
    assert main(["cache", "clear", "--all"]) == 0
    assert capsys.readouterr().out == "the cache is empty\n"


def test_verify_finds_the_one_file_that_changed(capsys: pytest.CaptureFixture[str]) -> None:
    add("model--sound", {"a.bin": b"abc"})
    content = add("model--torn", {"a.bin": b"abc", "b.bin": b"def"})
    assert main(["cache", "verify"]) == 0
    assert capsys.readouterr().out == "ok      model--sound\nok      model--torn\n2 verified\n"
    (content / "b.bin").write_bytes(b"deg")
    assert main(["cache", "verify"]) == 6
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "ok      model--sound"
    assert captured.out.splitlines()[1].startswith("damaged model--torn: 'b.bin' has changed")
    assert "1 of 2 are damaged; delete them" in captured.err
    assert "peftkit cache clear model--torn" in captured.err


def test_clear_deletes_what_is_named_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    kept, gone = add("model--kept", {"a": b"1"}), add("model--gone", {"a": json.dumps([1]).encode()})
    assert main(["cache", "clear", "model--gone"]) == 0
    assert capsys.readouterr().out.startswith("deleted model--gone, ")
    assert kept.is_dir()
    assert not gone.exists()
    assert main(["cache", "clear", "model--kep"]) == 6
    assert "there is no cache entry 'model--kep'; did you mean 'model--kept'?" in capsys.readouterr().err
    assert kept.is_dir()
    assert main(["cache", "clear", "--all"]) == 0
    assert not kept.exists()


@pytest.mark.parametrize("arguments", [[], ["model--kept", "--all"]])
def test_clear_never_guesses_what_to_delete(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    kept = add("model--kept", {"a": b"1"})
    assert main(["cache", "clear", *arguments]) == 2
    assert "name one entry, or give --all" in capsys.readouterr().err
    assert kept.is_dir()
