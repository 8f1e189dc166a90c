"""SHiRA: a few weights of each matrix train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.errors import CapabilityError
from peftkit.methods import TuningContext, methods
from peftkit.methods.peft_adapter import LinearAdapter, Sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@methods.register("shira")
class SHiRA(LinearAdapter):
    """A sparse random choice of each matrix' own weights trains; the update has a high rank."""

    config_class: ClassVar[str] = "ShiraConfig"
    paper: ClassVar[str] = "Bhardwaj et al. 2024, arXiv:2406.13175"
    use_when: ClassVar[str] = "adapters that are switched quickly or added to each other"
    mergeable: ClassVar[bool] = True
    adapts_conv1d: ClassVar[bool] = False
    default_learning_rate: ClassVar[float] = 3e-4

    rank: int = Field(8, ge=1)
    """As many weights of a matrix train as lora of this rank would have parameters."""
    seed: int = Field(0, ge=0)
    """Draws the positions."""

    def options(self, sizes: Sizes) -> dict[str, Any]:
        """See `LinearAdapter.options`."""
        for name, (inputs, outputs) in sizes.items():
            if self.rank * (inputs + outputs) > inputs * outputs:
                most = inputs * outputs // (inputs + outputs)
                raise CapabilityError(
                    f"method.rank {self.rank} asks for more weights than {name} has ({inputs} x {outputs}); "
                    f"use at most {most}"
                )
        return {"r": self.rank, "random_seed": self.seed}

    def apply(self, model: PreTrainedModel, context: TuningContext) -> PreTrainedModel:
        """The model as a `PeftModel`; see `TuningMethod.apply`."""
        import torch

        # torch's default, said aloud: otherwise it warns of it at the first sparse tensor.
        torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call] # torch gives it no types
        return super().apply(model, context)
