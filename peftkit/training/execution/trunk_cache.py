"""Blocks below all that trains are computed once for each input."""

from __future__ import annotations

from typing import ClassVar

from peftkit.training.execution.part import Part
from peftkit.training.execution.state_store import StateStore
from peftkit.training.execution.trunk import Trunk
from peftkit.training.execution.trunk_check import trunk_or_reason
from peftkit.training.setup import Setup


class TrunkCache(Part):
    """See `peftkit.training.execution.trunk`.

    Args:
        setup: the run.
        shares_blocks: whether other tasks train the same blocks at the same time.
        first_only: whether the last block is computed for the first token of each row only.
    """

    name: ClassVar[str] = "trunk_cache"

    def __init__(self, setup: Setup, *, shares_blocks: bool, first_only: bool) -> None:
        shared = "tasks that train together share their blocks"
        found = shared if shares_blocks else trunk_or_reason(setup, first_only=first_only)
        self.trunk = found if isinstance(found, Trunk) else None
        self.problem = found if isinstance(found, str) else None

    def described(self) -> str:
        """See `Part.described`."""
        if self.trunk is None or self.trunk.problem is not None:
            return f"off: {self.problem if self.trunk is None else self.trunk.problem}"
        trunk = self.trunk
        told = f"on: {len(trunk.blocks)} of {trunk.height} blocks, {trunk.computed} inputs computed, "
        told += f"{trunk.read} times read"
        if not trunk.in_training:
            told += (
                " (in evaluation only: dropout acts in them while training; training.frozen_dropout: false stops it)"
            )
        if isinstance(trunk.store, StateStore) and trunk.store.problem is not None:
            told += f"; not all are kept: {trunk.store.problem}"
        if isinstance(trunk.store, StateStore) and trunk.store.damaged:
            told += f"; {trunk.store.damaged} damaged files were computed anew"
        return told

    def flush(self) -> None:
        """See `Part.flush`."""
        if self.trunk is not None and isinstance(self.trunk.store, StateStore):
            self.trunk.store.flush()

    def remove(self) -> None:
        """See `Part.remove`."""
        if self.trunk is not None:
            self.trunk.remove()
