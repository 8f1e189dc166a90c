"""The script that makes the rows of recipes/e2e_lora.yaml."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tasks" / "e2e_nlg.py"
LINES = [
    ("name : Aromi", "Aromi is nice ."),
    ("name : Cocum", "Try Cocum , it is\u00a0cheap ."),
    ("name : Aromi", "Go ."),
]


@pytest.mark.parametrize("kind", ["csv", "txt"])
def test_both_forms_of_the_files_are_read(tmp_path: Path, kind: str) -> None:
    source, target = tmp_path / f"rows.{kind}", tmp_path / "made" / "rows.jsonl"
    written = [f"{meaning}||{text} " if kind == "txt" else f'{meaning},"{text}"' for meaning, text in LINES]
    source.write_text("\n".join(written if kind == "txt" else ["mr,ref", *written]) + "\n", "utf-8")
    made = []
    for flags in ([], ["--group"]):
        subprocess.run([sys.executable, SCRIPT, source, target, *flags], check=True, capture_output=True)
        made.append([json.loads(line) for line in target.read_text("utf-8").splitlines()])
    assert made[0] == [{"prompt": meaning, "completion": text} for meaning, text in LINES]
    assert made[1] == [
        {"prompt": "name : Aromi", "completion": ["Aromi is nice .", "Go ."]},
        {"prompt": "name : Cocum", "completion": [LINES[1][1]]},
    ]


def test_a_line_of_another_form_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a||b\nno separator\n")
    command = [sys.executable, SCRIPT, tmp_path / "rows.txt", tmp_path / "rows.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "rows.txt:2: no || in 'no separator" in done.stderr
    assert "Traceback" not in done.stderr
