from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from peftkit.cli.entry import main
from peftkit.results import RunResult


@pytest.fixture
def recipe(tmp_path: Path, tiny_bert: Path, sentiment_files: dict[str, Path]) -> Path:
    path = tmp_path / "tiny.yaml"
    content = {
        "model": {"id": str(tiny_bert), "max_length": 32},
        "task": "sequence_classification",
        "data": {"name": "files", **{split: str(file) for split, file in sentiment_files.items()}},
        "method": {"name": "lora", "rank": 4},
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
    }
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["r.yaml", "--resume", "d"], "--resume and RECIPE exclude each other: a resumed run uses the recipe in its"),
        (["--resume", "d", "--set", "seed=1"], "--resume and --set exclude each other: a resumed run keeps its recipe"),
        (["--resume", "d", "--run-dir", "e"], "--resume and --run-dir exclude each other"),
        (["--resume", "d", "--overwrite"], "--resume and --overwrite exclude each other"),
        ([], "name a recipe file, or a stopped run with --resume DIR"),
    ],
)
def test_contradictions_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.endswith("; see  peftkit run --help\n")


def test_a_bad_setting_is_told_with_its_text(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "check"):
        assert main([command, str(recipe), "--set", "training.batchsize=4", "--set", "method.rank=no"]) == 2
        error = capsys.readouterr().err
        assert "training.batchsize (--set): unknown key; did you mean 'batch_size'?" in error
        assert error.startswith(f"error: {recipe} has ")


def test_check_describes_recipe_and_data(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(recipe), "--set", "method.rank=2"]) == 0
    out = capsys.readouterr().out
    assert "recipe  tiny: sequence_classification with lora on " in out
    assert "\nrows    train 48, validation 16\n" in out
    assert "\nlabels  negative, positive\n" in out
    assert out.endswith(f"\nready: train it with  peftkit run {recipe} --set method.rank=2\n")


def test_check_leaves_nothing_behind(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(recipe.parent)
    assert main(["check", recipe.name]) == 0
    assert [path.name for path in recipe.parent.iterdir()] == ["tiny.yaml"]
    assert "ready: train it with  peftkit run tiny.yaml\n" in capsys.readouterr().out


def test_check_tells_every_problem_of_the_data(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "bad.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), ("good", "positive"), ("", "negative"), ("odd", "neutral")])
    settings = ["--set", f"data.train={tmp_path / 'bad.csv'}", "--set", "task.labels=[negative, positive]"]
    assert main(["check", str(recipe), *settings]) == 3
    captured = capsys.readouterr()
    assert f"error: {recipe} cannot be trained, its data has 2 problems:\n  " in captured.err
    assert "bad.csv:3" in captured.err
    assert "the label 'neutral' is not among task.labels" in captured.err
    assert "ready" not in captured.out


def test_check_shows_warnings_and_still_succeeds(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"text number {number}", "positive" if number else "negative") for number in range(40)]
    with (tmp_path / "skewed.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])
    assert main(["check", str(recipe), "--set", f"data.train={tmp_path / 'skewed.csv'}"]) == 0
    captured = capsys.readouterr()
    assert "warning: " in captured.err
    assert "ready: " in captured.out


def test_resuming_a_folder_without_a_run_says_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--resume", str(tmp_path / "none")]) == 5
    assert "holds no run to resume (no recipe.yaml)" in capsys.readouterr().err


def test_report_prints_the_path_and_writes_a_report_that_is_gone(
    finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = finished_run / "report.html"
    assert not path.exists()
    assert main(["report", str(finished_run)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert "</html>" in path.read_text("utf-8")
    path.write_text("mine", "utf-8")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: not opened.append(address))
    assert main(["report", str(finished_run), "--open"]) == 0
    assert opened == [path.resolve().as_uri()]
    assert path.read_text("utf-8") == "mine"


def test_report_without_a_browser_names_the_file(
    finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    assert main(["report", str(finished_run), "--open"]) == 4
    captured = capsys.readouterr()
    assert captured.out == f"{finished_run / 'report.html'}\n"
    assert "this machine has no browser to open; copy the file" in captured.err


def test_report_of_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 5
    assert "holds no finished run" in capsys.readouterr().err


@pytest.mark.training
def test_run_predict_and_report_one_after_the_other(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(recipe.parent)
    assert main(["run", "tiny.yaml", "--set", "method.rank=2"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("tiny: sequence_classification with lora on ")
    assert " -> runs/tiny\n" in captured.err
    folder = Path("runs", "tiny")
    result = RunResult.read(folder)
    assert result.recipe["method"]["rank"] == 2
    assert f"{result.metrics['validation']['accuracy']:.3f}"[:4] in captured.out
    *_, adapter, report, command = captured.out.splitlines()
    assert adapter.split() == ["adapter", "runs/tiny/adapter"]
    assert report.split() == ["report", "runs/tiny/report.html"]
    assert command.split(None, 1)[1] == 'peftkit predict runs/tiny "..."'

    assert main(["predict", "runs/tiny", "a kind film", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in ("negative", "positive")
    assert main(["report", "runs/tiny"]) == 0
    assert capsys.readouterr().out == "runs/tiny/report.html\n"

    assert main(["run", "tiny.yaml"]) == 5
    assert "'runs/tiny' is not empty" in capsys.readouterr().err
    assert main(["run", "tiny.yaml", "--overwrite", "--quiet", "--set", "method=full", "--run-dir", "runs/tiny"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines()[-3].split() == ["model", "runs/tiny/model"]
    assert main(["run", "--resume", "runs/tiny"]) == 5
    assert "is finished already" in capsys.readouterr().err


SLOW_METRIC = """\
import os
import signal

from peftkit.metrics import Metric, metrics


@metrics.register("interrupting")
class Interrupting(Metric):
    '''Presses Ctrl-C when it is computed for the first time.'''

    def compute(self, predictions, references):
        if not os.path.exists("checked"):  # before training, every metric is tried on the references
            open("checked", "w").close()
        elif not os.path.exists("pressed"):
            open("pressed", "w").close()
            os.kill(os.getpid(), signal.SIGINT)
        return {"interrupting": 1.0}
"""


@pytest.mark.training
def test_a_run_with_a_plugin_is_interrupted_and_resumed(recipe: Path) -> None:
    folder = recipe.parent
    (folder / "metric.py").write_text(SLOW_METRIC)
    command = [sys.executable, "-m", "peftkit", "run"]
    options = {"cwd": folder, "capture_output": True, "text": True}
    settings = ["--set", "metrics=[accuracy, interrupting]", "--plugin", "metric.py"]
    stopped = subprocess.run([*command, "tiny.yaml", *settings], check=False, **options)
    assert stopped.returncode == 128 + signal.SIGINT
    assert "Traceback" not in stopped.stderr
    assert "continue with  peftkit run --resume runs/tiny" in stopped.stderr
    resumed = subprocess.run([*command, "--resume", "runs/tiny", "--plugin", "metric.py"], check=False, **options)
    assert resumed.returncode == 0, resumed.stderr
    assert RunResult.read(folder / "runs" / "tiny").metrics["validation"]["interrupting"] == 1.0
