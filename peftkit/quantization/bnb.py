"""What the quantizers that go through bitsandbytes share."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from peftkit.quantization import Quantizer
from peftkit.quantization.dequantization import repair_cpu_dequantization

if TYPE_CHECKING:
    from torch import nn


class BitsAndBytes(Quantizer):
    """A quantizer of the bitsandbytes library, for CUDA GPUs and CPUs."""

    def problem(self, device: str) -> str | None:
        """See `Quantizer.problem`."""
        if importlib.util.find_spec("bitsandbytes") is None:
            return (
                f"quantization {self.name!r} needs bitsandbytes, which is not installed; "
                "install it with  pip install 'peftkit[quantization]'"
            )
        if device not in ("cuda", "cpu"):
            return f"quantization {self.name!r} runs on CUDA GPUs and CPUs, not on {device}; remove it from the recipe"
        return None

    def settle(self, model: nn.Module) -> None:
        """See `Quantizer.settle`."""
        keep_as_stored(model)


def keep_as_stored(model: nn.Module) -> None:
    """Make 4-bit weights of bitsandbytes keep their values for as long as `model` lives; others are left alone.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks 4-bit weights at the first evaluation: their scales are
    rounded to bfloat16 for good, so that the base would change while an adapter is trained on it.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment] # a plain attribute
            repair_cpu_dequantization()
