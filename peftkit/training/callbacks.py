"""What watches a run while the engine trains: progress, interruption, sealing of checkpoints."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peftkit.training.checkpoints import seal


class ShowProgress(TrainerCallback):
    """A bar with loss, examples per second and time left; evaluation scores as lines above it.

    Args:
        console: where to draw; on anything but a terminal only the lines are written.
        rows_per_step: rows that one optimizer step consumes, on average.
    """

    def __init__(self, console: Console, *, rows_per_step: float) -> None:
        self.rows_per_step = rows_per_step
        self.loss = "-"
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} examples/s "),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task: TaskID | None = None
        self.started = 0.0
        self.first_step = 0
        self.paused = 0.0
        self.evaluation_began: float | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar, at the step a resumed run continues from."""
        self.started, self.first_step = time.perf_counter(), state.global_step
        self.evaluation_began = None  # scoring before training is no pause of it
        self.task = self.bar.add_task(
            "training", total=state.max_steps, completed=state.global_step, loss=self.loss, rate="-"
        )
        self.bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar."""
        if self.task is not None:
            rate = f"{self.rate(state.global_step):,.0f}"
            self.bar.update(self.task, completed=state.global_step, loss=self.loss, rate=rate)

    def rate(self, step: int) -> float:
        """Training examples per second so far, evaluation time left out."""
        seconds = max(time.perf_counter() - self.started - self.paused, 1e-9)
        return (step - self.first_step) * self.rows_per_step / seconds

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take over the newest loss."""
        if logs and "loss" in logs:
            self.loss = f"{float(logs['loss']):.4f}"

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show that evaluation is under way."""
        if self.evaluation_began is None:
            self.evaluation_began = time.perf_counter()
            if self.task is not None:
                self.bar.update(self.task, description="evaluating")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float],
        **kwargs: Any,
    ) -> None:
        """Write the scores of one evaluation as a line."""
        if self.evaluation_began is not None:
            self.paused += time.perf_counter() - self.evaluation_began
            self.evaluation_began = None
        scores = {key.removeprefix("eval_"): value for key, value in metrics.items() if _is_score(key)}
        listed = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.bar.console.print(
            f"epoch {state.epoch or 0:.2f}  train loss {self.loss}  validation {listed}", highlight=False
        )
        if self.task is not None:
            self.bar.update(self.task, description="training")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the bar away."""
        self.stop()

    def stop(self) -> None:
        """Leave the terminal as it was, however training ended."""
        self.bar.stop()


def _is_score(key: str) -> bool:
    return key.startswith("eval_") and not key.endswith(("_runtime", "_per_second", "_time"))


class StopOnInterrupt(TrainerCallback):
    """Ctrl-C finishes the step, saves a checkpoint and stops; a second Ctrl-C stops at once."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.asked = False
        self.previous: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the signal; only the main thread may."""
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.console.print("stopping after this step; press Ctrl-C again to stop at once, with the last checkpoint")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop, if asked."""
        if self.asked:
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaving the loop counts as an epoch's end to the engine; an extra evaluation would change the run."""
        in_the_middle = abs((state.epoch or 0.0) - round(state.epoch or 0.0)) > 1e-6
        if self.asked and in_the_middle:
            control.should_evaluate = False
            control.should_save = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the signal back."""
        self.stop()

    def stop(self) -> None:
        """Restore the signal's former handler, however training ended."""
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)
            self.previous = None


class SealCheckpoints(TrainerCallback):
    """Gives every checkpoint its manifest as soon as the engine has written it."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Seal the checkpoint of this step."""
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and checkpoint.is_dir():
            seal(checkpoint)
