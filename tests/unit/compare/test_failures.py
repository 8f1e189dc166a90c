from __future__ import annotations

from pathlib import Path

import pytest

from peftkit.compare.data_files import without_paths
from peftkit.compare.failures import Failure, explain, read_reason
from peftkit.errors import RunError

TRACEBACK = """\
Traceback (most recent call last):
  File "x.py", line 3, in f
ZeroDivisionError: division by zero
error: this is a bug in peftkit 0.1.0, not in your input; please report it with the lines above
"""


@pytest.mark.parametrize(
    ("code", "log", "reason"),
    [
        (3, "note: 1\nerror: no column 'text'\n", "no column 'text'"),
        (3, "error: old\nresuming\nerror: two problems:\n  first\n  second\n", "two problems: first second"),
        (70, TRACEBACK, "ZeroDivisionError: division by zero"),
        (-9, "epoch 1.00\n", "killed by SIGKILL, often because memory ran out"),
        (-11, "", "killed by SIGSEGV"),
        (-250, "", "killed by signal 250"),
        (1, "\n  something\n\n", "exit code 1: something"),
        (2, "", "exit code 2"),
    ],
)
def test_reason_is_one_line_that_says_what_happened(code: int, log: str, reason: str) -> None:
    assert explain(code, log)[0] == reason


def test_only_the_end_of_a_long_log_is_kept() -> None:
    _, lines = explain(1, "\n".join(f"line {number}" for number in range(100)))
    assert lines == tuple(f"line {number}" for number in range(80, 100))


def test_a_record_is_read_back_and_a_damaged_one_named(tmp_path: Path) -> None:
    path = tmp_path / "seed0.failure.json"
    assert read_reason(path) is None
    Failure(-9, "killed by SIGKILL", 2.5, "2026-01-02T03:04:05+00:00", ("last words",)).write(path)
    assert read_reason(path) == "killed by SIGKILL"
    assert [left.name for left in tmp_path.iterdir()] == ["seed0.failure.json"]
    path.write_text("[]")
    with pytest.raises(RunError, match=r"seed0\.failure\.json' is damaged .*; delete it, and the run starts anew"):
        read_reason(path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("split 'train' of '/data/me/reviews.csv' has no column", "split 'train' of 'reviews.csv' has no column"),
        ("/data/me/train.tsv:12: too few fields", "train.tsv:12: too few fields"),
        (r"cannot use 'D:\data\me\run'", "cannot use 'run'"),
        ("see https://example.org/a/b and recipes/sst2.yaml, and/or 1/2", None),
    ],
)
def test_absolute_paths_are_cut_down_to_their_last_part(text: str, shown: str | None) -> None:
    assert without_paths(text) == (text if shown is None else shown)
