"""8-bit storage of the base weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from peftkit.quantization import quantizers
from peftkit.quantization.bnb import BitsAndBytes
from peftkit.quantization.dequantization import keep_moved_scales

if TYPE_CHECKING:
    import torch
    from torch import nn


@quantizers.register("int8")
class Int8(BitsAndBytes):
    """8-bit integers with one scale per row; activations beyond a threshold are multiplied in 16 bits (LLM.int8())."""

    paper: ClassVar[str] = "Dettmers et al. 2022, arXiv:2208.07339"
    bits: ClassVar[int] = 8

    outlier_threshold: float = Field(6.0, ge=0.0)
    """Columns of the input with a magnitude above this are multiplied in 16 bits; 0: none."""

    def config(self, *, compute_dtype: torch.dtype, keep: Sequence[str]) -> Any:
        """See `Quantizer.config`; the products are always computed in float16."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=self.outlier_threshold, llm_int8_skip_modules=list(keep)
        )

    def settle(self, model: nn.Module) -> None:
        """See `Quantizer.settle`."""
        keep_moved_scales()
