"""The budget of AdaLoRA while training runs: stepping peft's allocator, keeping its state, noting the ranks.

Neither transformers nor peft calls the allocator by itself; without it AdaLoRA is LoRA with a fixed rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peftkit.results import RANK_PREFIX

_MOMENTS = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_POINTS = 60
"""Ranks are noted at most so many times in a run."""


def orthogonality_penalty(model: Any) -> Tensor:
    """Mean over all P and Q of |P'P - I| and |QQ' - I|, Frobenius norms (Zhang et al. 2023, equation 4).

    peft adds it to a loss that the model itself computes; peftkit's losses are computed outside of the model.
    """
    distances = []
    for name, weight in model.named_parameters():
        if weight.requires_grad and ("lora_A" in name or "lora_B" in name):
            gram = weight @ weight.T if "lora_A" in name else weight.T @ weight
            distances.append(torch.linalg.norm(gram - torch.eye(len(gram), device=gram.device)))
    return torch.stack(distances).mean()


def ranks(model: Any) -> dict[str, int]:
    """The present rank of every matrix by the name of its layer: singular values that are not pruned."""
    adapter = model.active_adapter
    pattern = model.peft_config[adapter].rank_pattern
    found = {}
    for name, values in model.named_parameters():
        if f"lora_E.{adapter}" in name:
            layer = name.removeprefix("base_model.model.").partition(".lora_E")[0]
            kept = next((kept for key, kept in (pattern or {}).items() if key.partition(".lora_E")[0] == layer), None)
            found[layer] = len(values) if kept is None else sum(kept)
    return found


class AllocateRanks(TrainerCallback):
    """Steps the allocator after every optimizer step, while the gradients are still there.

    Args:
        interval: steps between two allocations.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Update importances and, where it is time, give the budget out anew."""
        model.base_model.update_and_allocate(state.global_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Note the ranks in the history, where they have changed."""
        every = max(self.interval, state.max_steps // _POINTS)
        if state.global_step not in (1, state.max_steps) and state.global_step % every:
            return
        present = {f"{RANK_PREFIX}{layer}": float(rank) for layer, rank in ranks(model).items()}
        # The history is what a resumed run knows of the steps before.
        noted: dict[str, float] = next(
            (point for point in reversed(state.log_history) if present.keys() <= point.keys()), {}
        )
        if not present.items() <= noted.items() or state.global_step == state.max_steps:
            state.log_history.append({"step": state.global_step, "epoch": state.epoch or 0.0, **present})


def allocator_state(model: Any) -> dict[str, Tensor]:
    """Importances and ranks as tensors by name."""
    allocator = model.base_model.rankallocator
    kept: dict[str, Tensor] = {}
    for moment in _MOMENTS:
        kept |= {f"{moment}:{name}": tensor for name, tensor in getattr(allocator, moment).items()}
    pattern = model.peft_config[model.active_adapter].rank_pattern or {}
    return kept | {f"pattern:{name}": torch.tensor(values, dtype=torch.bool) for name, values in pattern.items()}


def restore_allocator(model: Any, state: Mapping[str, Tensor]) -> None:
    """Take up what `allocator_state` gave."""
    allocator = model.base_model.rankallocator
    for moment in _MOMENTS:
        start = f"{moment}:"
        setattr(allocator, moment, {name.removeprefix(start): state[name] for name in state if name.startswith(start)})
    pattern = {name.removeprefix("pattern:"): state[name].tolist() for name in state if name.startswith("pattern:")}
    model.peft_config[model.active_adapter].rank_pattern = pattern or None


def keep_divisors(model: Any) -> None:
    """Freeze the rank that divides each update, in float32; on a 16-bit base peft 0.21 lets it train."""
    for name, weight in model.named_parameters():
        if ".ranknum." in name:
            weight.requires_grad_(False).data = weight.data.float()


def cut_pruned(model: Any) -> None:
    """Shorten the matrices to the singular values that are kept, as they will be after loading."""
    adapter = model.active_adapter
    pattern = model.peft_config[adapter].rank_pattern
    if pattern:
        model.base_model.resize_modules_by_rank_pattern(pattern, adapter)
