"""`peftkit compare`, with real runs of a tiny model."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from peftkit.cli import app
from peftkit.cli.entry import main
from peftkit.compare.running import SuiteOptions
from peftkit.errors import InterruptedRunError
from peftkit.results import RunResult


@pytest.fixture
def suite(tmp_path: Path, tiny_bert: Path, sentiment_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A suite beside its base recipe; one of its variants cannot find its data."""
    recipe = {
        "model": {"id": str(tiny_bert), "max_length": 32},
        "task": "sequence_classification",
        "data": {"name": "files", **{split: str(file) for split, file in sentiment_files.items()}},
        "method": {"name": "lora", "rank": 4},
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    variants = {"lora": {}, "absent": {"data.train": "absent.csv"}}
    content = {"recipe": "tiny.yaml", "set": {"training.epochs": 1}, "seeds": [0, 1], "variants": variants}
    (tmp_path / "methods.yaml").write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path / "methods.yaml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--only", "full"],
            "--only full: the suite has no such variant (it has: lora, absent); see  peftkit compare -",
        ),
        (["--seeds", "0 1"], "--seeds 0 1: write different whole numbers with commas, such as 0,1,2"),
        (["--seeds", "1,1"], "--seeds 1,1: write different"),
        (["--seeds", "4294967296"], "write different whole numbers"),
        (["--report-only", "--retry-failed"], "--report-only runs nothing: remove --retry-failed"),
        (["--report-only", "--only", "lora"], "--report-only runs nothing: remove --only"),
        (["--set", "method.rnk=3"], "every variant: method.rnk (--set): unknown key; did you mean 'rank'?"),
    ],
)
def test_wrong_command_lines_are_refused_before_anything_runs(
    suite: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["compare", "methods.yaml", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (suite.parent / "runs").exists()


PAGE = Path(__file__).parents[3] / "docs" / "compare.md"


@pytest.mark.parametrize("line", PAGE.read_text("utf-8").partition("```sh\n")[2].partition("```")[0].splitlines())
def test_commands_in_the_documentation_are_legal(line: str) -> None:
    program, command, *call = shlex.split(line)
    assert (program, command) == ("peftkit", "compare")
    typer.main.get_command(app).commands["compare"].make_context("compare", call)


def test_a_report_of_nothing_says_so(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "methods.yaml", "--report-only"]) == 5
    assert "no run of the suite is finished, so there is nothing to compare" in capsys.readouterr().err


def test_an_interrupted_suite_names_the_command_that_continues_it(
    suite: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(runs: Any, out: Path, console: Any, *, options: SuiteOptions) -> None:
        raise InterruptedRunError(options.again)

    monkeypatch.setattr("peftkit.compare.running.run_missing", interrupted)
    (suite.parent / "p.py").write_text("import peftkit")
    call = ["methods.yaml", "--out", "my runs", "--set", "task.labels=[a, b]", "--set", "method.rank=3"]
    call += ["--seeds", "0,1", "--only", "lora", "--only", "absent", "--plugin", "p.py", "--trust-remote-code"]
    assert main(["compare", *call, "--retry-failed"]) == 130
    assert shlex.split(capsys.readouterr().err.splitlines()[-1]) == ["peftkit", "compare", *call]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file of the runs below a folder."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.glob("*/seed*/**/*")
        if path.is_file()
    }


def check_files(out: Path, printed: str) -> None:
    """The files of the suite say what its run folders do."""
    results = {seed: RunResult.read(*out.glob(f"lora/seed{seed}-*/")) for seed in (0, 1)}
    scores = [result.metrics["validation"]["accuracy"] for result in results.values()]
    content = json.loads((out / "comparison.json").read_text())
    assert content["variants"][0]["scores"] == {"0": scores[0], "1": scores[1]}
    assert content["variants"][0]["mean"] == pytest.approx(sum(scores) / 2)
    assert content["variants"][0]["inference_seconds_per_example"] > 0
    assert [run["state"] for run in content["runs"]] == ["finished", "finished", "failed", "failed"]
    assert str(Path.cwd()) not in (out / "comparison.json").read_text()
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        ".lock", "comparison.csv", "comparison.json", "comparison.md", "index.html", "runs.csv",
    }  # fmt: skip
    (record,) = out.glob("absent/seed1-*.failure.json")
    failure = json.loads(record.read_text())
    assert failure["exit_code"] == 3
    assert failure["end_of_log"][-1].startswith("error: ")
    assert f"{content['variants'][0]['mean']:.4f}" in printed


@pytest.mark.training
def test_a_suite_is_run_once_its_failures_recorded_and_everything_compared(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "methods.yaml", "--only", "lora", "--seeds", "0"]) == 0  # one run, on its own
    assert capsys.readouterr().err.startswith("methods: 1 run -> runs/compare/methods\n[1/1] lora seed 0: ")
    out = Path("runs", "compare", "methods")
    first = contents(out)

    assert main(["compare", "methods.yaml"]) == 5
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[0] == "methods: 4 runs -> runs/compare/methods"
    assert lines[1].startswith("[1/4] lora seed 0: finished before, accuracy ")
    assert lines[2].startswith("[2/4] absent seed 0: failed after ")
    assert "absent.csv" in lines[2]
    assert lines[3].startswith("[3/4] lora seed 1: ")
    assert lines[5].startswith("error: 2 of 4 runs failed; the rest is compared above.")
    assert first.items() <= contents(out).items()
    check_files(out, captured.out)

    before = contents(out)
    assert main(["compare", "methods.yaml", "--quiet", "--set", "name=x"]) == 2
    assert main(["compare", "methods.yaml", "--quiet"]) == 5
    assert contents(out) == before
    capsys.readouterr()
    assert main(["compare", "methods.yaml", "--report-only"]) == 0
    captured = capsys.readouterr()
    assert "absent, seed 1 failed" in captured.out
    assert captured.out.endswith("index.html       runs/compare/methods/index.html\n")
    assert captured.err == ""


KILLER = """\
import os
import signal

from peftkit.metrics import Metric, metrics


@metrics.register("killing")
class Killing(Metric):
    '''Kills the run and its suite in the second evaluation, after the first checkpoint.'''

    def compute(self, predictions, references):
        calls = open("calls", "a")
        calls.write("x")
        calls.close()
        if os.path.getsize("calls") == 3:  # before training, every metric is tried on the references
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return {"killing": 1.0}
"""


@pytest.mark.training
def test_a_killed_suite_goes_on_where_it_was(suite: Path) -> None:
    (suite.parent / "killer.py").write_text(KILLER)
    arguments = ["compare", "methods.yaml", "--only", "lora", "--seeds", "4", "--plugin", "killer.py"]
    arguments += ["--set", "metrics=[accuracy, killing]", "--set", "training.epochs=2", "--out", "out"]
    command = [sys.executable, "-m", "peftkit", *arguments]  # so that the plugin's metric is not registered here
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    (folder,) = Path("out", "lora").glob("seed4-*/")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-6"]

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "[1/1] lora seed 4: " in again.stderr
    assert "resuming from checkpoint-6" in folder.with_name(f"{folder.name}.log").read_text()
    assert RunResult.read(folder).cost.steps == 12
    assert "lora, seed 4: this run was resumed" in Path("out", "comparison.md").read_text()
