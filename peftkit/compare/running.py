"""Running what is missing of a suite: each run in a process of its own, failures recorded, nothing computed twice."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from textwrap import shorten
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from peftkit.compare.failures import Failure, explain, read_reason
from peftkit.compare.sole_use import sole_use
from peftkit.compare.suite import PlannedRun
from peftkit.errors import InterruptedRunError, RunError
from peftkit.report.scores import main_score
from peftkit.report.wording import duration, number
from peftkit.results import RUN_FILE, RunResult

if TYPE_CHECKING:
    from rich.console import Console

RECIPE_FILE = "recipe.yaml"
CHECKPOINTS = "checkpoints/checkpoint-*"
_INTERRUPTED = (InterruptedRunError.exit_code, -signal.SIGINT)


class State(Enum):
    """How far a run is."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    """With a checkpoint that it can be resumed from."""
    BROKEN_OFF = "broken off"
    """Without a checkpoint: it has to start anew."""
    MISSING = "missing"


@dataclass(frozen=True)
class SuiteOptions:
    """What a user may decide about running a suite.

    Args:
        retry_failed: run again, from the start, what has failed before.
        run_options: further options of `peftkit run`, such as plugins.
        again: command that continues the suite, for messages.
    """

    retry_failed: bool = False
    run_options: tuple[str, ...] = ()
    again: str = "the same command"


def state(run: PlannedRun) -> State:
    """How far a run is, by what it has left."""
    if (run.folder / RUN_FILE).is_file():
        return State.FINISHED
    if run.failure_file.is_file():
        return State.FAILED
    if any(run.folder.glob(CHECKPOINTS)):
        return State.STOPPED
    left = {path.name for path in run.folder.iterdir()} if run.folder.is_dir() else set()
    return State.BROKEN_OFF if left - {RECIPE_FILE} else State.MISSING


def run_missing(runs: Sequence[PlannedRun], out: Path, console: Console, *, options: SuiteOptions) -> None:
    """Run what is neither finished nor failed; one line for each run.

    Args:
        out: folder of the suite.
        console: where progress goes.

    Raises:
        InterruptedRunError: the user stopped the suite; started again it goes on where it was.
        RunError: another process works in the folder.
    """
    with sole_use(out) as inherited, _Interruption() as interruption:
        for place, run in enumerate(runs, start=1):
            name = f"[{place:{len(str(len(runs)))}}/{len(runs)}] {run.label} seed {run.seed}"
            before = state(run)
            if before is State.FINISHED:
                console.print(f"{name}: finished before{_score(run)}")
            elif before is State.FAILED and not options.retry_failed:
                reason = _shortened(str(read_reason(run.failure_file)))
                console.print(f"{name}: failed before, --retry-failed runs it again: {reason}")
            else:
                with console.status(f"{name}, {'resumed' if before is State.STOPPED else 'running'}"):
                    said = _run_one(run, options.run_options, interruption=interruption, inherited=inherited)
                console.print(f"{name}: {said}")
            if interruption.asked:
                raise InterruptedRunError(_how_to_go_on(runs, options))


def finished(runs: Sequence[PlannedRun]) -> dict[str, list[RunResult]]:
    """Results by label, in the order of the seeds; labels without any are there too."""
    results: dict[str, list[RunResult]] = {run.label: [] for run in runs}
    for run in runs:
        if state(run) is State.FINISHED:
            results[run.label].append(RunResult.read(run.folder))
    return results


class _Interruption:
    """Ctrl-C and SIGTERM: the run saves a checkpoint and ends, and only then does the suite.

    The run has a process group of its own, so that a Ctrl-C on the terminal does not reach it twice, which would stop
    it without a checkpoint.
    """

    def __init__(self) -> None:
        self.asked = False
        self.child: subprocess.Popen[bytes] | None = None
        self.former: dict[int, Any] = {}

    def __enter__(self) -> _Interruption:
        if threading.current_thread() is threading.main_thread():  # no other may handle signals
            self.former = {caught: signal.signal(caught, self._ask) for caught in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signalled, handler in self.former.items():
            signal.signal(signalled, handler)

    def _ask(self, signalled: int, frame: FrameType | None) -> None:
        self.asked = True
        self._pass_on()

    def _pass_on(self) -> None:
        # On Windows the run shares the console of the suite and gets Ctrl-C by itself.
        if self.child is not None and sys.platform != "win32":
            self.child.send_signal(signal.SIGINT)

    def wait_for(self, child: subprocess.Popen[bytes]) -> int:
        """Exit code of a run that has just been started."""
        self.child = child
        if self.asked:  # between its start and here
            self._pass_on()
        try:
            return child.wait()
        finally:
            self.child = None


def _run_one(
    run: PlannedRun, options: Sequence[str], *, interruption: _Interruption, inherited: tuple[int, ...]
) -> str:
    """Run or resume, and say in a few words what came of it."""
    arguments = _arguments(run)
    run.failure_file.unlink(missing_ok=True)
    began = time.perf_counter()
    with run.log_file.open("ab") as log:
        start = log.tell()
        command = [sys.executable, "-m", "peftkit", "run", *options, *arguments]
        group = None if sys.platform == "win32" else 0
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=group, pass_fds=inherited
        )
        code = interruption.wait_for(child)
    seconds = time.perf_counter() - began
    if code == 0:
        return f"{duration(seconds)}{_score(run)}"
    if interruption.asked or code in _INTERRUPTED:
        return "stopped"
    reason, lines = explain(code, run.log_file.read_bytes()[start:].decode("utf-8", errors="replace"))
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    Failure(code, reason, round(seconds, 1), ended, lines).write(run.failure_file)
    return f"failed after {duration(seconds)}: {_shortened(reason)}"


def _arguments(run: PlannedRun) -> list[str]:
    """Arguments of `peftkit run` that resume a stopped run, or start one, in place of what a failed one has left."""
    found = state(run)
    if found is State.STOPPED:
        return ["--resume", str(run.folder)]
    left = sorted(path.name for path in run.folder.iterdir()) if run.folder.is_dir() else []
    if left and RECIPE_FILE not in left:
        raise RunError(
            f"'{run.folder}' holds files that are no run of peftkit ({', '.join(left[:4])}); move them away, or choose "
            "another folder with --out"
        )
    if left:
        shutil.rmtree(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    recipe = run.folder / RECIPE_FILE
    recipe.write_text(run.recipe.to_yaml(), "utf-8")
    return [str(recipe), "--run-dir", str(run.folder)]


def _shortened(reason: str) -> str:
    return shorten(reason, 200, placeholder=" ...")


def _score(run: PlannedRun) -> str:
    score = main_score(RunResult.read(run.folder))
    return f", {score.metric} {number(score.value)} on {score.split}" if score else ""


def _how_to_go_on(runs: Sequence[PlannedRun], options: SuiteOptions) -> str:
    done = sum(state(run) is State.FINISHED for run in runs)
    return f"stopped with {done} of {len(runs)} runs finished; what they computed is kept, go on with  {options.again}"
