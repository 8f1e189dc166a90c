"""One contestant on one work, in a process of its own: `python contestant.py WORK CONTESTANT FOLDER DATA`.

Prints one line of JSON: seconds and real tokens of the timed steps, the loss of every step, peak memory.

All take the rows, their tokens and their first weights from peftkit, so that they differ in how a step is computed:

    peftkit         the recipe as a user runs it, but for evaluation
    trainer         transformers.Trainer on peft's model with dynamic padding, as their documentation shows
    trainer_padded  the same, each row padded to the longest that the model may see, as tutorials do
    loop            a bare PyTorch loop over the same batches
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments
from works import WORKS, Work

from peftkit.artifacts import locate_model
from peftkit.models import load_tokenizer, quiet_libraries, storage_of
from peftkit.recipe import Recipe
from peftkit.training.engines import build_trainer
from peftkit.training.environment import check_environment
from peftkit.training.prepare import completed, load_rows, prepare_data
from peftkit.training.setup import Setup
from peftkit.training.tuning import tuned_model

LEARNING_RATE = 1e-3
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "labels")


class Clock(TrainerCallback):
    """Time from the end of the warm-up to the end of the run, with the tokens and losses of the steps."""

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.seconds = 0.0
        self.tokens = 0
        self.losses: list[float] = []
        self.began = 0.0
        self.worked = 0.0
        self.step = 0
        self.batch_tokens: list[int] = []

    def counted(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`collate`, with the real tokens of each batch kept."""

        def collating(features: Any) -> Any:
            batch = collate(features)
            self.batch_tokens.append(int(batch["attention_mask"].sum()))
            return batch

        return collating

    def begin(self) -> None:
        """Called when the model stands ready: peak memory is measured from here on."""
        Path("/proc/self/clear_refs").write_text("5")

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """One more step is done."""
        self.step += 1
        if self.step == self.warmup:
            self.began = time.perf_counter()
            self.worked = time.process_time()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the loss of the step."""
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])

    def result(self, steps: int) -> dict[str, Any]:
        """What is printed."""
        seconds, worked = time.perf_counter() - self.began, time.process_time() - self.worked
        status = Path("/proc/self/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        tokens = sum(self.batch_tokens[self.warmup : self.warmup + steps])
        return {
            "seconds": seconds,
            "cpu_seconds": worked,
            "tokens": tokens,
            "peak_mb": peak / 1024,
            "losses": self.losses,
        }


def still_base(work: Work, folder: Path) -> Path:
    """The base model without dropout, so that losses can be compared."""
    source, copy = locate_model(work.model["id"]).path, folder / "base"
    if not copy.exists():
        copy.mkdir(parents=True)
        for file in source.iterdir():
            if file.name != "config.json":
                (copy / file.name).symlink_to(file.resolve())
        config = json.loads((source / "config.json").read_text())
        still = {key: 0.0 if "dropout" in key and isinstance(value, float) else value for key, value in config.items()}
        (copy / "config.json").write_text(json.dumps(still))
    return copy


def recipe_of(work: Work, folder: Path, data: Path) -> Recipe:
    """The work as a recipe."""
    source = {"name": "files", **work.data}
    if source["name"] == "files":
        source["train"] = str(data / source["train"])
    return Recipe.from_values(
        {
            "name": "speed",
            "model": {**work.model, "id": str(still_base(work, folder))},
            "task": work.task,
            "data": source,
            "method": work.method,
            "training": {
                "max_steps": work.warmup + work.steps,
                "batch_size": work.batch_size,
                "learning_rate": LEARNING_RATE,
                "logging_steps": 1,
                "warmup_steps": 0,
                "scheduler": "constant",
            },
        },
        origin="benchmark",
    )


def prepared(work: Work, folder: Path, data: Path) -> Setup:
    """Rows, tokens and first weights."""
    recipe = recipe_of(work, folder, data)
    environment = check_environment(recipe, folder)
    loaded, task = load_rows(recipe)
    tokenizer = load_tokenizer(locate_model(recipe.model.locator))
    rows = prepare_data(recipe, loaded, task=task, tokenizer=tokenizer)
    recipe = completed(recipe, rows)
    storage = storage_of(recipe, rows.task.head(), dtype=environment.weight_dtype)
    model = tuned_model(recipe, rows, tokenizer, storage=storage, trust_remote_code=False).model
    return Setup(recipe, model, rows, environment)


def of_peftkit(setup: Setup, clock: Clock, folder: Path) -> None:
    """peftkit's engine."""
    trainer = build_trainer(setup, folder / "checkpoints", callbacks=[clock])
    trainer.args.save_strategy = "no"
    trainer.data_collator = clock.counted(trainer.data_collator)
    clock.begin()
    trainer.train()


def collator(setup: Setup, padded_to: int | None) -> Callable[[Any], Any]:
    """That of the documentation of transformers."""
    kind = DataCollatorWithPadding if setup.recipe.task.name == "sequence_classification" else DataCollatorForSeq2Seq
    fill = {"padding": "max_length", "max_length": padded_to} if padded_to else {}
    collate: Callable[[Any], Any] = kind(setup.data.tokenizer, **fill)
    return collate


def trainer_of(setup: Setup, clock: Clock, folder: Path, padded_to: int | None = None) -> Trainer:
    """transformers.Trainer, as its documentation shows."""
    training = setup.recipe.training
    features = setup.data.features["train"]
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=training.batch_size,
        max_steps=training.max_steps or -1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        seed=setup.recipe.seed,
        data_seed=setup.recipe.seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return Trainer(
        setup.model,
        arguments,
        train_dataset=features.select_columns([name for name in INPUTS if name in features.column_names]),
        data_collator=clock.counted(collator(setup, padded_to)),
        callbacks=[clock],
    )


def of_trainer(setup: Setup, clock: Clock, folder: Path, padded_to: int | None = None) -> None:
    """transformers.Trainer."""
    trainer = trainer_of(setup, clock, folder, padded_to)
    clock.begin()
    trainer.train()


def of_loop(setup: Setup, clock: Clock, folder: Path) -> None:
    """What one would write by hand, over the batches that Trainer makes."""
    model: Any = setup.model
    batches = trainer_of(setup, clock, folder).get_train_dataloader()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
    clock.begin()
    model.train()
    for batch in _repeated(batches, setup.recipe.training.max_steps or 0):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.losses.append(loss.item())
        clock.on_step_end()


def _repeated(batches: Any, steps: int) -> Iterator[Any]:
    return islice(chain.from_iterable(repeat(batches)), steps)


CONTESTANTS: dict[str, Callable[..., None]] = {"peftkit": of_peftkit, "trainer": of_trainer, "loop": of_loop}


def main() -> None:
    """Run the contestant that the command line names."""
    name, contestant, folder, data = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    work = WORKS[name]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    transformers.logging.set_verbosity_error()
    clock = Clock(work.warmup)
    with quiet_libraries():
        setup = prepared(work, folder / name, data)
        if contestant == "trainer_padded":
            of_trainer(setup, clock, folder, padded_to=work.padded_to)
        else:
            CONTESTANTS[contestant](setup, clock, folder)
    print(json.dumps(clock.result(work.steps)))


if __name__ == "__main__":
    main()
