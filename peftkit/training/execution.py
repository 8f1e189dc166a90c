"""How the steps of a run are computed, where that is left to the engine: the same maths in less time and memory."""

from __future__ import annotations

from collections.abc import Mapping

from peftkit.padding_free import PaddingFree, padding_free_problem
from peftkit.training.setup import Setup


class Execution:
    """What is done to the model of a run to compute its steps faster, until `remove`."""

    def __init__(self, setup: Setup) -> None:
        problem = _padding_problem(setup)
        self.padding_free = PaddingFree(setup.model) if problem is None else None
        self._problem = problem

    def described(self) -> Mapping[str, str]:
        """What was done, and why what was not done was not, for the report."""
        problem = self._problem
        if self.padding_free is not None and self.padding_free.padded and not self.padding_free.packed:
            problem = "the method or task reads more than its hidden states of the model"
        return {"padding_free": "on" if problem is None else f"off: {problem}"}

    def remove(self) -> None:
        """Leave the model as plain libraries know it."""
        if self.padding_free is not None:
            self.padding_free.remove()


def _padding_problem(setup: Setup) -> str | None:
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
