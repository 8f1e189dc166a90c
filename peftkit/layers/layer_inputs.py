"""What the inputs of linear layers look like over some batches: for starts of LoRA that are drawn from data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Batch = Mapping[str, Tensor]


@dataclass
class Moments:
    """Mean and spread of one layer's inputs, updated batch by batch.

    Args:
        count: rows seen.
        mean: (width,) float32.
        scatter: (width, width) float32, the sum of (x - mean) (x - mean)'.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        """Moments of rows (rows, width)."""
        rows = rows.float()
        mean = rows.mean(dim=0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def add(self, other: Moments) -> None:
        """Take in what another batch has shown (Chan, Golub & LeVeque 1979: no cancellation of large means)."""
        count = self.count + other.count
        shift = other.mean - self.mean
        self.scatter += other.scatter + torch.outer(shift, shift) * (self.count * other.count / count)
        self.mean += shift * (other.count / count)
        self.count = count

    @property
    def second_moment(self) -> Tensor:
        """(width, width), the mean of x x'."""
        return self.scatter / self.count + torch.outer(self.mean, self.mean)

    def principal_directions(self) -> tuple[Tensor, Tensor]:
        """Directions (width, width), one per row, widest spread first, and their shares of the variance (width,)."""
        values, vectors = torch.linalg.eigh(self.scatter)
        values, vectors = values.flip(0).clamp(min=0.0), vectors.flip(1)
        return vectors.T.contiguous(), values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)


@torch.no_grad()
def input_moments(model: Any, layers: Sequence[str], batches: Iterable[Batch]) -> dict[str, Moments]:
    """Moments of the inputs of `layers` over `batches`, padding left out; layers with one input share the object.

    Args:
        model: put into evaluation mode while this runs.
    """
    latest: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            if args:
                latest[name] = args[0]

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in layers]
    training, found = model.training, dict[str, Moments]()
    half = model.dtype in (torch.bfloat16, torch.float16)
    try:
        model.eval()
        for batch in batches:
            with torch.autocast(model.device.type, dtype=model.dtype if half else None, enabled=half):
                model(**batch)
            _take_in(found, latest, batch.get("attention_mask"))
            latest.clear()
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found


def _take_in(found: dict[str, Moments], latest: Mapping[str, Tensor], mask: Tensor | None) -> None:
    """Add a batch; inputs that are one tensor, as those of query, key and value, are counted once."""
    present: dict[int, Moments] = {}
    added: set[int] = set()
    for name, inputs in latest.items():
        if id(inputs) not in present:
            rows = _real_rows(inputs, mask)
            if len(rows) == 0:
                continue
            present[id(inputs)] = Moments.of(rows)
        new = present[id(inputs)]
        known = found.setdefault(name, new)
        if known is not new and id(known) not in added:
            known.add(new)
            added.add(id(known))


def _real_rows(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """(rows, width); those of padding are left out where there is one row per token of the input."""
    if mask is not None and inputs.shape[:-1] == mask.shape:
        return inputs[mask.bool()]
    return inputs.flatten(0, -2)
