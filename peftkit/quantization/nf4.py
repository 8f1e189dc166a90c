"""4-bit storage of the base weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from peftkit.quantization import quantizers
from peftkit.quantization.bnb import BitsAndBytes

if TYPE_CHECKING:
    import torch


class FourBit(BitsAndBytes):
    """Blocks of 64 weights, each divided by its largest magnitude and rounded to the nearest of 16 levels."""

    paper: ClassVar[str] = "Dettmers et al. 2023, arXiv:2305.14314, section 3"
    bits: ClassVar[int] = 4

    double_quantization: bool = True
    """Store the blocks' scales in 8 bits as well: 4.13 bits per weight instead of 4.5."""

    def config(self, *, compute_dtype: torch.dtype, keep: Sequence[str]) -> Any:
        """See `Quantizer.config`."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.name,
            bnb_4bit_use_double_quant=self.double_quantization,
            bnb_4bit_compute_dtype=compute_dtype,
            llm_int8_skip_modules=list(keep),  # despite its name it holds for 4 bits too
        )


@quantizers.register("nf4")
class NF4(FourBit):
    """4-bit normal floats: levels are quantiles of the normal distribution, which weights resemble (QLoRA)."""


@quantizers.register("fp4")
class FP4(FourBit):
    """4-bit floats: sign, two bits of exponent, one of mantissa; less exact than nf4 for normally spread weights."""
