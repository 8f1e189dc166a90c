"""Running a suite: what is run, what is left alone, and what becomes of runs that fail, are killed or interrupted.

Here a small script stands for `peftkit run`, so that every way a run can end is quick to try; test_comparison.py of the
command line runs the real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from peftkit.compare.outcome import gather
from peftkit.compare.running import State, SuiteOptions, run_missing, state
from peftkit.compare.sole_use import sole_use
from peftkit.compare.suite import Plan, PlannedRun, read_plan
from peftkit.errors import InterruptedRunError, RunError
from peftkit.results import RunResult

PLAY = """\
#!{python} -S
import json, os, shutil, signal, sys
arguments = sys.argv[4:]
folder = arguments[arguments.index("--resume" if "--resume" in arguments else "--run-dir") + 1]
with open("{root}/calls.jsonl", "a") as calls:
    left = sorted(os.listdir(folder)) if os.path.isdir(folder) else None
    calls.write(json.dumps([sys.argv[1:4], arguments, left]) + "\\n")
label = os.path.basename(os.path.dirname(folder))
parts = open("{root}/play.json")
how = json.load(parts)[label]
print("note: playing", how, file=sys.stderr, flush=True)
def checkpoint():
    os.makedirs(folder + "/checkpoints/checkpoint-3", exist_ok=True)
if how == "finish":
    shutil.copy("{root}/result.json", folder + "/run.json")
elif how == "fail":
    checkpoint()
    print("error: no column 'text'", file=sys.stderr)
    sys.exit(3)
elif how == "kill":
    checkpoint()
    os.kill(os.getpid(), signal.SIGKILL)
elif how == "leave a process behind":
    if os.fork() == 0:
        open("{root}/pipe").read()  # until the test closes it
        os._exit(0)
    shutil.copy("{root}/result.json", folder + "/run.json")
elif how == "stopped":
    checkpoint()
    sys.exit(130)
elif how in ("interrupt suite", "terminate suite"):
    def stop(*_):
        checkpoint()
        sys.exit(130)
    signal.signal(signal.SIGINT, stop)
    os.kill(os.getppid(), signal.SIGINT if how == "interrupt suite" else signal.SIGTERM)
    while True:
        signal.pause()
"""


class Stage:
    """A suite with the variants `a` and `b`, one seed, and a script in the place of peftkit."""

    def __init__(self, root: Path, result: RunResult) -> None:
        self.root, self.out = root, root / "out"
        (root / "base.yaml").write_text("{model: org/tiny, task: sequence_classification, method: lora,"
                                        " data: {name: files, train: t.csv}}")  # fmt: skip
        (root / "s.yaml").write_text("{recipe: base.yaml, seeds: [0], variants: {a: {}, b: {method.rank: 2}}}")
        result.write(root)
        (root / "run.json").rename(root / "result.json")
        self.plan: Plan = read_plan(root / "s.yaml")
        self.runs = self.plan.runs(self.out)
        self.script = root / "python"
        self.script.write_text(PLAY.format(python=sys.executable, root=root))
        self.script.chmod(0o755)
        self.lines: list[str] = []

    def play(self, *, retry_failed: bool = False, runs: Sequence[PlannedRun] | None = None, **how: str) -> None:
        """Run the suite; `how` says by label what happens to its runs."""
        (self.root / "play.json").write_text(json.dumps({"a": "finish", "b": "finish", **how}))
        (self.root / "calls.jsonl").write_text("")
        console = Console(file=open(os.devnull, "w"), width=300, record=True, highlight=False, markup=False)  # noqa: SIM115 - lives as long as the console
        options = SuiteOptions(retry_failed, ("--plugin", "x.py"), again="peftkit compare s.yaml")
        try:
            run_missing(runs or self.runs, self.out, console, options=options)
        finally:
            console.file.close()
            self.lines = console.export_text().splitlines()

    @property
    def calls(self) -> list[tuple[str, list[str], list[str] | None]]:
        """Label, arguments and what was in the folder, for every call of the script in the last play."""
        found = [json.loads(line) for line in (self.root / "calls.jsonl").read_text().splitlines()]
        assert all(start == ["-m", "peftkit", "run"] for start, _, _ in found)
        return [
            (next(run.label for run in self.runs if str(run.folder) in told), told, left) for _, told, left in found
        ]

    def states(self) -> list[State]:
        return [state(run) for run in self.runs]


@pytest.fixture
def stage(tmp_path: Path, make_run: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch) -> Stage:
    found = Stage(tmp_path, make_run(0.75))
    monkeypatch.setattr(sys, "executable", str(found.script))
    return found


def test_every_run_gets_its_recipe_and_folder_and_one_line(stage: Stage) -> None:
    stage.play()
    a, b = stage.runs
    recipe = str(a.folder / "recipe.yaml")
    assert stage.calls[0] == ("a", ["--plugin", "x.py", recipe, "--run-dir", str(a.folder)], ["recipe.yaml"])
    assert Path(recipe).read_text() == a.recipe.to_yaml()
    assert stage.states() == [State.FINISHED, State.FINISHED]
    assert len(stage.lines) == 2
    assert stage.lines[1].startswith("[2/2] b seed 0: 0.")
    assert stage.lines[1].endswith(" s, accuracy 0.7500 on test")
    assert b.log_file.read_text() == "note: playing finish\n"


def test_what_is_finished_is_not_run_again(stage: Stage) -> None:
    stage.play(b="fail")
    stage.play()
    assert stage.calls == []
    assert stage.lines == [
        "[1/2] a seed 0: finished before, accuracy 0.7500 on test",
        "[2/2] b seed 0: failed before, --retry-failed runs it again: no column 'text'",
    ]


def test_a_failure_is_recorded_and_the_others_go_on(stage: Stage) -> None:
    stage.play(a="fail")
    assert stage.states() == [State.FAILED, State.FINISHED]
    record = json.loads(stage.runs[0].failure_file.read_text())
    assert record["exit_code"] == 3
    assert record["reason"] == "no column 'text'"
    assert record["end_of_log"] == ["note: playing fail", "error: no column 'text'"]
    assert 0 <= record["seconds"] < 60
    assert "failed after 0." in stage.lines[0]
    comparison = gather(stage.plan.suite, stage.runs)
    assert comparison.failures == {"a": {0: "no column 'text'"}}
    assert [summary.label for summary in comparison.summaries] == ["b"]


def test_a_run_that_is_killed_is_a_failure(stage: Stage) -> None:
    stage.play(a="kill")
    assert stage.lines[0].endswith(": killed by SIGKILL, often because memory ran out")
    assert json.loads(stage.runs[0].failure_file.read_text())["exit_code"] == -9
    assert stage.states() == [State.FAILED, State.FINISHED]


def test_retrying_starts_anew_and_knows_only_the_new_reason(stage: Stage) -> None:
    stage.play(a="kill")
    stage.play(a="fail", retry_failed=True)
    ((label, told, left),) = stage.calls
    assert (label, "--resume" in told, left) == ("a", False, ["recipe.yaml"])
    assert "no column 'text'" in stage.lines[0]
    stage.play(retry_failed=True)
    assert stage.states() == [State.FINISHED, State.FINISHED]
    assert not stage.runs[0].failure_file.exists()


def test_a_stopped_run_is_no_failure_and_is_resumed(stage: Stage) -> None:
    stage.play(a="stopped")
    assert stage.lines[0] == "[1/2] a seed 0: stopped"
    assert stage.states() == [State.STOPPED, State.FINISHED]
    stage.play()
    ((_, told, _),) = stage.calls
    assert told[-2:] == ["--resume", str(stage.runs[0].folder)]
    assert stage.states() == [State.FINISHED, State.FINISHED]


def test_a_run_without_a_checkpoint_starts_anew(stage: Stage) -> None:
    folder = stage.runs[0].folder
    (folder / "half").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("torn")
    assert state(stage.runs[0]) is State.BROKEN_OFF
    stage.play()
    assert stage.calls[0][1:] == (
        ["--plugin", "x.py", f"{folder}/recipe.yaml", "--run-dir", str(folder)],
        ["recipe.yaml"],
    )


def test_files_that_are_no_run_are_not_deleted(stage: Stage) -> None:
    folder = stage.runs[0].folder
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    for _ in range(2):
        with pytest.raises(RunError, match=rf"'{folder}' holds files that are no run of peftkit \(mine\.txt\); move"):
            stage.play()
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("how", ["interrupt suite", "terminate suite"])
def test_an_interruption_reaches_the_run_and_then_stops_the_suite(stage: Stage, how: str) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    message = r"stopped with 0 of 2 runs finished; what they computed is kept, go on with  peftkit compare s\.yaml"
    with pytest.raises(InterruptedRunError, match=message):
        stage.play(a=how)
    assert [label for label, _, _ in stage.calls] == ["a"]
    assert stage.states() == [State.STOPPED, State.MISSING]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    stage.play()
    assert "--resume" in stage.calls[0][1]
    assert stage.states() == [State.FINISHED, State.FINISHED]


def test_two_suites_do_not_work_in_one_folder(stage: Stage) -> None:
    with sole_use(stage.out), pytest.raises(RunError, match=rf"works in '{stage.out}'; wait until it is done"):
        stage.play()
    assert stage.calls == []
    stage.play()


def test_a_folder_stays_taken_while_a_run_of_a_killed_suite_works_in_it(tmp_path: Path) -> None:
    with sole_use(tmp_path) as inherited:
        orphan = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=inherited)
    try:
        with pytest.raises(RunError, match="a run that a killed one has left behind"), sole_use(tmp_path):
            pass
    finally:
        orphan.communicate(b"\n")
    with sole_use(tmp_path):
        pass


def test_runs_hold_the_folder_too(stage: Stage) -> None:
    os.mkfifo(stage.root / "pipe")
    stage.play(a="leave a process behind", runs=stage.runs[:1])
    try:
        with pytest.raises(RunError, match="a run that a killed one has left behind"):
            stage.play()
    finally:
        (stage.root / "pipe").write_text("")


def test_nothing_finished_is_nothing_to_compare(stage: Stage) -> None:
    with pytest.raises(RunError, match=r"no run of the suite is finished, so there is nothing to compare$"):
        gather(stage.plan.suite, stage.runs)
    stage.play(a="fail", b="kill")
    with pytest.raises(RunError, match=r"nothing to compare\n  a seed 0: no column 'text'\n  b seed 0: killed by SIGK"):
        gather(stage.plan.suite, stage.runs)
