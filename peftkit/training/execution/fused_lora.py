"""Linear layers with LoRA are one operation."""

from __future__ import annotations

from typing import ClassVar

from peftkit.kernels.lora_linear import fuse_lora, unfuse_lora
from peftkit.training.execution.part import Part
from peftkit.training.setup import Setup


class FusedLora(Part):
    """See `peftkit.kernels.lora_linear`."""

    name: ClassVar[str] = "fused_lora_layers"

    def __init__(self, setup: Setup) -> None:
        self.model = setup.model
        self.count = fuse_lora(setup.model)

    def described(self) -> str:
        """See `Part.described`."""
        return str(self.count)

    def remove(self) -> None:
        """See `Part.remove`."""
        unfuse_lora(self.model)
