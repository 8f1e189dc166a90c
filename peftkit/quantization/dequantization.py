"""Repairs of what bitsandbytes does with the scales of its weights."""

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


@cache
def keep_moved_scales() -> None:
    """Let 8-bit layers keep their scales when their weight is moved after the first use, in this process from now on.

    Then the layer holds the scales, not the weight, so that a moved weight has none, and bitsandbytes 0.50 takes that
    for the layer's. peft moves the weight, to where it is, whenever DoRA looks at it on a CPU.
    """
    from bitsandbytes.nn.modules import Linear8bitLt

    take_over: Callable[[Any], None] = Linear8bitLt.init_8bit_state

    def init_8bit_state(layer: Any) -> None:
        if layer.weight.SCB is None:
            layer.weight.SCB = layer.state.SCB
        take_over(layer)

    Linear8bitLt.init_8bit_state = init_8bit_state  # type: ignore[method-assign] # the repair
