"""Running what is missing of a suite: each run in a process of its own, failures recorded, nothing computed twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from peftkit.compare.suite import PlannedRun
from peftkit.errors import InterruptedRunError, RunError
from peftkit.results import RUN_FILE, RunResult

RECIPE_FILE = "recipe.yaml"
_INTERRUPTED = InterruptedRunError.exit_code


def state(run: PlannedRun) -> str:
    """finished, failed, stopped (it can be resumed) or missing."""
    if (run.folder / RUN_FILE).is_file():
        return "finished"
    if run.failure_file.is_file():
        return "failed"
    left = {path.name for path in run.folder.iterdir()} if run.folder.is_dir() else set()
    return "stopped" if left - {RECIPE_FILE} else "missing"


def run_missing(
    runs: Sequence[PlannedRun], say: Callable[[str], None], *, retry_failed: bool = False, options: Sequence[str] = ()
) -> None:
    """Run what is neither finished nor failed.

    Args:
        say: takes one line of progress.
        retry_failed: run what has failed before, too.
        options: further options of `peftkit run`, such as plugins.

    Raises:
        InterruptedRunError: the user stopped the suite; started again it goes on where it was.
    """
    for number, run in enumerate(runs, start=1):
        name = f"[{number}/{len(runs)}] {run.label} seed {run.seed}"
        found = state(run)
        if found == "finished":
            say(f"{name}: finished before")
        elif found == "failed" and not retry_failed:
            say(f"{name}: failed before; try again with --retry-failed")
        else:
            run.failure_file.unlink(missing_ok=True)
            began = time.perf_counter()
            say(f"{name}: {'resuming' if found == 'stopped' else 'running'}")
            _run_one(run, options)
            seconds = time.perf_counter() - began
            reason = failure(run)
            say(f"{name}: {f'failed: {reason}' if reason else f'finished in {seconds:.0f} s'}")


def failure(run: PlannedRun) -> str | None:
    """Why a run has failed, in one line; None if it has not."""
    if not run.failure_file.is_file():
        return None
    try:
        return str(json.loads(run.failure_file.read_text("utf-8"))["reason"])
    except (ValueError, KeyError) as problem:
        raise RunError(f"'{run.failure_file}' is damaged ({problem}); delete it to run again") from problem


def finished(runs: Sequence[PlannedRun]) -> dict[str, list[RunResult]]:
    """Results by label, in the order of the seeds; labels without any are there too."""
    results: dict[str, list[RunResult]] = {run.label: [] for run in runs}
    for run in runs:
        if state(run) == "finished":
            results[run.label].append(RunResult.read(run.folder))
    return results


def _run_one(run: PlannedRun, options: Sequence[str]) -> None:
    resuming = state(run) == "stopped"
    run.folder.mkdir(parents=True, exist_ok=True)
    recipe = run.folder / RECIPE_FILE
    command = [sys.executable, "-m", "peftkit", "run", *options]
    if resuming:
        command += ["--resume", str(run.folder)]
    else:
        recipe.write_text(run.recipe.to_yaml(), "utf-8")
        command += [str(recipe), "--run-dir", str(run.folder)]
    with run.log_file.open("a", encoding="utf-8") as log, _child_answers_interrupts():
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if code == _INTERRUPTED:
        raise InterruptedRunError("the suite is stopped; start it again with the same command, and it goes on")
    if code != 0:
        _record_failure(run, code)


@contextmanager
def _child_answers_interrupts() -> Iterator[None]:
    """Ctrl-C reaches the child by itself; it saves a checkpoint and ends, and only then does the suite."""
    try:
        before = signal.signal(signal.SIGINT, lambda number, frame: None)
    except ValueError:  # not in the main thread, where Python lets nobody handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _record_failure(run: PlannedRun, code: int) -> None:
    lines = _tail(run.log_file)
    told = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), None)
    killed = f"killed by {signal.Signals(-code).name}" if code < 0 else None
    reason = killed or told or (lines[-1] if lines else f"exit code {code}")
    content = {"exit_code": code, "reason": reason, "end_of_log": lines}
    run.failure_file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _tail(path: Path, *, lines: int = 20) -> list[str]:
    return [line for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip()][-lines:]
