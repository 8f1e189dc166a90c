"""Freezing a model from below and thawing it from the top while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peftkit.layers.blocks import block_lists


def depth_groups(model: nn.Module, *, blocks_per_stage: int = 1) -> list[list[str]]:
    """Names of all parameters in groups, from the top: head and final layers, block after block, embeddings.

    Blocks of several stacks (encoder and decoder) that are equally far from their tops share a group.
    """
    stacks = block_lists(model)
    depth = max(len(blocks) for blocks in stacks.values())
    stages = -(-depth // blocks_per_stage)
    groups: list[list[str]] = [[] for _ in range(stages + 2)]
    for name, _ in model.named_parameters():
        stack = next((stack for stack in stacks if name.startswith(f"{stack}.")), None)
        if stack is not None:
            from_top = len(stacks[stack]) - 1 - int(name.removeprefix(f"{stack}.").split(".")[0])
            groups[1 + from_top // blocks_per_stage].append(name)
        elif _is_embedding(name):
            groups[-1].append(name)
        else:
            groups[0].append(name)
    return groups


def _is_embedding(name: str) -> bool:
    return any("embed" in part or part in ("wte", "wpe", "shared") for part in name.split("."))


class Unfreeze(TrainerCallback):
    """Trains the first group alone, then one group more with every stage.

    Which groups train follows from the step alone, so that a resumed run does what it would have done.

    Args:
        every: steps of a stage, or "epoch".
    """

    def __init__(self, every: Literal["epoch"] | int, *, blocks_per_stage: int) -> None:
        self.every = every
        self.blocks_per_stage = blocks_per_stage
        self.groups: Sequence[Sequence[str]] = ()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Freeze all but the first group; the optimizer, which has been built by now, holds every parameter."""
        self.groups = depth_groups(model, blocks_per_stage=self.blocks_per_stage)
        self._thaw(model, state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Thaw what this step trains."""
        self._thaw(model, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Leave the whole model trainable, as it was found."""
        model.requires_grad_(True)

    def _thaw(self, model: Any, state: TrainerState) -> None:
        stage = int(state.epoch or 0.0) if self.every == "epoch" else state.global_step // self.every
        training = {name for group in self.groups[: stage + 1] for name in group}
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in training)
