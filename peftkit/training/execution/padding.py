"""Batches are computed without their padding."""

from __future__ import annotations

from typing import ClassVar

from peftkit.padding_free import PaddingFree, has_decoder_beside, padding_free_problem
from peftkit.training.execution.part import Part
from peftkit.training.setup import Setup


class WithoutPadding(Part):
    """See `peftkit.padding_free`."""

    name: ClassVar[str] = "padding_free"

    def __init__(self, setup: Setup) -> None:
        self.model = setup.model
        self.problem = _problem(setup)
        distillation = setup.recipe.distillation
        reads_blocks = distillation is not None and distillation.hidden_states is not None
        self.installed = PaddingFree(setup.model, reads_blocks=reads_blocks) if self.problem is None else None

    @property
    def first_only(self) -> bool:
        """Whether the last block is computed for the first token of each row only."""
        return self.installed is not None and self.installed.first is not None

    def described(self) -> str:
        """See `Part.described`."""
        if self.installed is None:
            return super().described()
        if self.installed.padded and not self.installed.packed:
            return "off: the method or task reads more than hidden states of the model"
        if has_decoder_beside(self.model):
            return "on in the encoder; the decoder is given no mask, and keeps its padding"
        return "on, and in the last block first tokens only, as the head reads no others" if self.first_only else "on"

    def remove(self) -> None:
        """See `Part.remove`."""
        if self.installed is not None:
            self.installed.remove()


def _problem(setup: Setup) -> str | None:
    training = setup.recipe.training
    if not training.padding_free:
        return "training.padding_free is false"
    if training.gradient_checkpointing:
        return "gradient checkpointing computes blocks again when their batch is forgotten"
    mixing = next((part.name for part in setup.recipe.regularizers if part.mixes_rows), None)
    if mixing is not None:
        return f"regularizer {mixing!r} mixes rows, token by token"
    if not setup.recipe.method.per_token:
        return f"method {setup.recipe.method.name!r} may mix the tokens of a batch"
    return padding_free_problem(setup.model)
