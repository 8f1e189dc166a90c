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
        self.installed = PaddingFree(setup.model) if self.problem is None else None

    def described(self) -> str:
        """See `Part.described`."""
        if self.installed is None:
            return super().described()
        if self.installed.padded and not self.installed.packed:
            return "off: the method or task reads more than hidden states of the model"
        if has_decoder_beside(self.model):
            return "on in the encoder; the decoder is given no mask, and keeps its padding"
        return "on"

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
