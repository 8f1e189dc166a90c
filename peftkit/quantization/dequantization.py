"""A repair of bitsandbytes' dequantization of 4-bit weights on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import c_longlong
from functools import cache
from itertools import product
from typing import Any


@cache
def repair_cpu_dequantization() -> None:
    """Make 4-bit layers of every width compute with their own scales on CPUs, in this process from now on.

    Blocks of 64 weights run on from row to row. The AVX-512 kernel of bitsandbytes 0.50 takes each row to begin with a
    block of its own: where the inputs of a layer are a multiple of 16 but not of 64, it multiplies most weights by
    another block's scale, wrong by 25 to 40 % of a layer's norm instead of 9 %, without a word. Handed the same
    weights as one long row it is right.
    """
    from bitsandbytes.backends.cpu import ops

    kernels: Any = ops.lib  # type: ignore[attr-defined] # imported there, but not declared as an export
    for levels, dtype in product(("nf4", "fp4"), ("fp32", "bf16", "fp16")):
        name = f"cdequantize_blockwise_cpu_{levels}_{dtype}"
        setattr(kernels, name, _as_one_row(getattr(kernels, name)))


def _as_one_row(kernel: Callable[..., None]) -> Callable[..., None]:
    def dequantize(packed: Any, scales: Any, out: Any, block: c_longlong, *shape: c_longlong) -> None:
        rows, columns = (size.value for size in shape)
        if columns % block.value:
            rows, columns = 1, rows * columns
        kernel(packed, scales, out, block, c_longlong(rows), c_longlong(columns))

    return dequantize
