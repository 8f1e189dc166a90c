"""The part of a recipe that names a teacher."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from peftkit.recipe_section import Section


class HiddenStates(Section):
    """What the student's layers give, held against the teacher's."""

    loss: Literal["cosine", "mse"] = "cosine"
    """cosine: 1 - cosine, so that only directions count (Sanh et al. 2019, arXiv:1910.01108); mse: the mean squared
    difference (Jiao et al. 2020, arXiv:1909.10351). Averaged over the tokens of a batch, summed over `layers`."""
    weight: float = Field(1.0, gt=0)
    """What is added to the loss is this many times theirs."""
    layers: dict[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] | None = None
    """Layers of the student with those of the teacher that they learn from, counted from 1, 0 is what goes into the
    first: {1: 2, 2: 4, 3: 6}; none: every layer of the student, and the teacher's at the same share of its depth."""


class Distillation(Section):
    """What a trained model teaches the one that is tuned."""

    teacher: str = Field(min_length=1)
    """Folder of a finished run of the same task; or hub id or folder of a model that has been trained for it."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Share of the teacher's predictions in the loss: (1 - alpha) * loss + alpha * temperature^2 * KL(teacher ||
    student); for numbers the squared difference takes the place of the last. (Hinton et al. 2015,
    arXiv:1503.02531)"""
    temperature: float | None = Field(None, gt=0)
    """What both models' logits are divided by; none: 2, and nothing for numbers."""
    hidden_states: HiddenStates | None = None
    """Layers that learn from the teacher's layers; none: only its predictions count."""
    answers: Literal["rows", "teacher"] = "rows"
    """Of tasks that answer with text: teacher replaces the training answers by its own. (Kim & Rush 2016,
    arXiv:1606.07947)"""

    @model_validator(mode="after")
    def _teaches(self) -> Self:
        if self.alpha == 0 and self.hidden_states is None and self.answers == "rows":
            raise ValueError(
                "alpha is 0, so that nothing is learnt from the teacher; raise it, or give hidden_states or answers: "
                "teacher"
            )
        return self

    @property
    def computes_teacher(self) -> bool:
        """Whether the teacher is computed on every batch, not only asked for its answers before."""
        return self.alpha > 0 or self.hidden_states is not None
