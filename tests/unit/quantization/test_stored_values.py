"""What is stored for a weight, against the formulas of the papers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import nn

Load = Callable[..., Any]

# QLoRA (arXiv:2305.14314), appendix E: "NormalFloat 4-bit data type".
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)
# Sign, two bits of exponent, one of mantissa: 2, 3, 4, 6, 8, 12 twelfths, and 1/16 of a twelfth below them.
FP4 = sorted({sign * value / 12 for value in (0.0, 0.0625, 2, 3, 4, 6, 8, 12) for sign in (1, -1)})
BLOCK, OUTER_BLOCK = 64, 256


def quantized_weights(load: Load, quantization: Any) -> Iterator[tuple[torch.Tensor, nn.Module]]:
    """The full-precision weight of each quantized layer, and the layer."""
    plain = load("bert").model
    found = 0
    for name, layer in load("bert", quantization).model.named_modules():
        if type(layer).__name__ in ("Linear4bit", "Linear8bitLt"):
            found += 1
            yield plain.get_submodule(name).weight.detach(), layer
    assert found == 2 * 6 + 1, "two blocks of six linear layers, and the pooler"


def dequantized(layer: Any) -> torch.Tensor:
    import bitsandbytes

    weight: torch.Tensor = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return weight


def nearest(weight: torch.Tensor, levels: tuple[float, ...] | list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of 64 values, each the nearest level times the block's largest magnitude; and these magnitudes."""
    blocks = weight.reshape(-1, BLOCK)
    largest = blocks.abs().amax(1, keepdim=True)
    table = torch.tensor(levels)
    index = (blocks.div(largest).unsqueeze(-1) - table).abs().argmin(-1)
    return (table[index] * largest).reshape(weight.shape), largest.flatten()


def test_levels_are_quantiles_of_the_normal_distribution() -> None:
    """The table above is no typing mistake: section 3 gives the formula, the authors' code its outermost quantile."""
    outermost = 1 - 0.5 * (1 / 32 + 1 / 30)
    positive = [NormalDist().inv_cdf(outermost + (0.5 - outermost) * i / 8) for i in range(8)]
    negative = [-NormalDist().inv_cdf(outermost + (0.5 - outermost) * i / 7) for i in range(7)]
    levels = sorted([*negative, 0.0, *positive])
    assert [level / max(levels) for level in levels] == pytest.approx(NF4, abs=1e-6)


@pytest.mark.parametrize(("name", "levels"), [("nf4", list(NF4)), ("fp4", FP4)])
def test_weights_are_rounded_to_the_nearest_level(load: Load, name: str, levels: list[float]) -> None:
    for weight, layer in quantized_weights(load, {"name": name, "double_quantization": False}):
        expected, largest = nearest(weight, levels)
        assert torch.equal(layer.weight.quant_state.absmax, largest)
        # bitsandbytes rounds the border between two levels to float32: values on it may fall to either side.
        stored = dequantized(layer)
        differ = (stored - expected).abs() > 1e-6 * weight.abs().max()
        assert differ.float().mean() <= 0.001
        assert torch.all((stored - weight).abs() <= (expected - weight).abs() + 1e-5)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_double_quantization_stores_scales_in_8_bits(load: Load, name: str) -> None:
    apart = dict(enumerate(quantized_weights(load, {"name": name, "double_quantization": False})))
    for index, (weight, layer) in enumerate(quantized_weights(load, name)):
        plain = apart[index][1]
        state = layer.weight.quant_state
        assert state.absmax.dtype == torch.uint8
        assert state.absmax.numel() == weight.numel() // BLOCK
        assert state.state2.absmax.numel() == -(-weight.numel() // BLOCK // OUTER_BLOCK)
        assert torch.equal(layer.weight.data, plain.weight.data), "the codes are the same, only scales are rounded"
        # 8 bits of a float with up to 7 bits of fraction: the middle of two neighbours is at most 1/127 away.
        scales = plain.weight.quant_state.absmax
        error = (dequantized(layer) - dequantized(plain)).abs().reshape(-1, BLOCK).amax(1)
        assert torch.all(error <= (scales - scales.mean()).abs().max() / 127 * 1.001 + 1e-6)
        assert error.max() > 0


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize("width", [16, 48, 64, 96, 100, 33, 320])
def test_layers_of_any_width_compute_with_their_own_scales(name: str, width: int) -> None:
    """Forward and backward, in batches and for one row; bitsandbytes 0.50 errs by up to 40 % for widths 16, 48, 96."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    from peftkit.quantization.bnb import keep_as_stored

    random = torch.Generator().manual_seed(width)
    weight = torch.randn(24, width, generator=random)
    layer = Linear4bit(width, 24, bias=False, compute_dtype=torch.float32, quant_type=name)
    layer.weight = Params4bit(weight, requires_grad=False, quant_type=name, compress_statistics=False).to("cpu")
    keep_as_stored(layer)
    padded = nn.functional.pad(weight.flatten(), (0, -weight.numel() % BLOCK))
    expected = nearest(padded, NF4 if name == "nf4" else FP4)[0][: weight.numel()].reshape(weight.shape)
    inputs = torch.randn(5, width, generator=random, requires_grad=True)
    outputs = layer(inputs)
    outputs.sum().backward()
    assert torch.allclose(outputs, inputs @ expected.T, atol=1e-4)
    assert inputs.grad is not None
    assert torch.allclose(inputs.grad, expected.sum(0).expand_as(inputs), atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(layer(inputs[:1]), outputs[:1], atol=1e-4)


@pytest.mark.parametrize(("double", "bits"), [(True, 4 + 8 / 64), (False, 4 + 32 / 64)])
def test_bits_per_weight(load: Load, double: bool, bits: float) -> None:
    """Without the scales of the scales, 32 bits for 256 blocks, which a tiny layer does not fill."""
    for weight, layer in quantized_weights(load, {"name": "nf4", "double_quantization": double}):
        state = layer.weight.quant_state
        stored = layer.weight.nbytes + state.absmax.nbytes
        assert 8 * stored / weight.numel() == bits


def test_int8_rows_are_scaled_to_127(load: Load) -> None:
    """LLM.int8() (arXiv:2208.07339), section 3.1, vector-wise; the weights are rounded to float16 before."""
    for weight, layer in quantized_weights(load, "int8"):
        half = weight.half().float()
        scale = half.abs().amax(1)
        assert torch.equal(layer.weight.SCB, scale)
        assert layer.weight.dtype == torch.int8
        exact = half * 127 / scale[:, None]
        assert torch.all((layer.weight.data.float() - exact).abs() <= 0.5 + 1e-4)


def test_outliers_are_multiplied_apart(load: Load) -> None:
    """A column of large inputs would take all of the 127 steps of its row; above the threshold it does not."""
    errors = {}
    for threshold in (6.0, 0.0):
        weight, layer = next(quantized_weights(load, {"name": "int8", "outlier_threshold": threshold}))
        inputs = torch.randn(16, weight.shape[1], generator=torch.Generator().manual_seed(3))
        inputs[:, 5] = 60.0
        with torch.no_grad():
            stored = layer.weight.data * layer.weight.SCB[:, None] / 127
            errors[threshold] = (layer(inputs) - (inputs @ stored.T + layer.bias)).abs().mean().item()
    assert errors[6.0] < 0.1 * errors[0.0]


def test_moved_int8_weight_keeps_its_scales(load: Load) -> None:
    """After the first use the layer holds the scales, and bitsandbytes would give a moved weight none."""
    for _, layer in quantized_weights(load, "int8"):
        inputs = torch.randn(3, layer.in_features)
        before = layer(inputs)
        layer.weight = layer.weight.to("cpu")
        assert torch.equal(layer(inputs), before)
