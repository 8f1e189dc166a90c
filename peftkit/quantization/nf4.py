"""nf4."""

from __future__ import annotations

from typing import Any, ClassVar

from peftkit.quantization import Quantizer, quantizers


@quantizers.register("nf4")
class NF4(Quantizer):
    """4-bit normal floats."""

    bits: ClassVar[int] = 4
