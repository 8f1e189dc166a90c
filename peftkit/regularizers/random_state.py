"""The state that dropout is drawn from, so that two passes can have the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def random_state() -> list[Tensor]:
    """That of the CPU, then those of the GPUs, if they are used."""
    import torch

    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]


def set_random_state(state: Sequence[Tensor]) -> None:
    """Go back to a state."""
    import torch

    cpu, *gpus = state
    torch.set_rng_state(cpu)
    if gpus:
        torch.cuda.set_rng_state_all(gpus)
