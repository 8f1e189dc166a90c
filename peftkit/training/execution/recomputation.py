"""Cheap operations of a block are computed again in the backward pass, rather than kept for it."""

from __future__ import annotations

from typing import ClassVar

from peftkit.kernels.recompute import Recomputation, pays_back
from peftkit.layers.blocks import block_lists
from peftkit.training.execution.part import Part
from peftkit.training.setup import Setup


class CheapRecomputation(Part):
    """See `peftkit.kernels.recompute`."""

    name: ClassVar[str] = "recomputation"

    def __init__(self, setup: Setup) -> None:
        self.problem = _problem(setup)
        blocks = [block for stack in block_lists(setup.model).values() for block in stack]
        self.installed = Recomputation(setup.model, blocks) if self.problem is None else None

    def remove(self) -> None:
        """See `Part.remove`."""
        if self.installed is not None:
            self.installed.remove()


def _problem(setup: Setup) -> str | None:
    recipe = setup.recipe
    if recipe.training.gradient_checkpointing:
        return "gradient checkpointing recomputes whole blocks"
    if not recipe.method.allows_gradient_checkpointing:
        return f"method {recipe.method.name!r} does not allow it"
    part = next((part.name for part in recipe.regularizers if not part.allows_gradient_checkpointing), None)
    if part is not None:
        return f"regularizer {part!r} does not allow it"
    if recipe.distillation is not None or recipe.task.engine is not None:
        return "other programs look into the blocks"
    stacks = block_lists(setup.model)
    if len(stacks) > 1:
        return "blocks of encoder-decoders share tensors that are made once for a packed batch"
    if not pays_back(block for stack in stacks.values() for block in stack):
        return "the norms of the model keep little"
    return None
