"""(IA)3: what it scales in each architecture, and by the paper's formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contracts.cells import Cell
from torch import nn

from peftkit.errors import CapabilityError
from peftkit.methods.ia3 import places

MakeCell = Callable[..., Cell]
PLACES = {
    "bert_sequence": ({"query": 0, "key": 2, "value": 2}, "output.dense"),
    "llama": ({"k_proj": 2, "v_proj": 2, "q_proj": 0}, "mlp.down_proj"),
    "gpt2": ({"c_attn": 2}, "mlp.c_proj"),
    "t5": ({"k": 6, "v": 6, "q": 0}, "DenseReluDense.wo"),
}


@pytest.mark.parametrize("architecture", PLACES)
def test_keys_values_and_the_inside_of_feed_forward_layers(cell: MakeCell, architecture: str) -> None:
    counts, feed_forward = PLACES[architecture]
    keys_and_values, outputs = places(cell("ia3", architecture).skeleton())
    for ending, count in counts.items():
        assert sum(name.split(".")[-1] == ending for name in keys_and_values) == count
    assert len(keys_and_values) == sum(counts.values())
    assert outputs
    assert all(name.endswith(feed_forward) for name in outputs)
    assert not any("attention.output" in name for name in outputs)


def test_outputs_follow_the_papers_formula(cell: MakeCell) -> None:
    """Keys and values are scaled at their output, the feed-forward layer at its input: Liu et al. 2022, section 3.3."""
    model = cell("ia3").tuned()
    block = model.get_base_model().bert.encoder.layer[0]
    inputs = {32: torch.randn(3, 32), 64: torch.randn(3, 64)}
    generator = torch.Generator().manual_seed(0)
    for layer in (block.attention.self.key, block.output.dense):
        scale = layer.ia3_l["default"]
        with torch.no_grad():
            scale.copy_(torch.rand(scale.shape, generator=generator) + 0.5)
        x, plain = inputs[layer.in_features], layer.get_base_layer()
        feeds_forward = layer is block.output.dense
        expected = plain(x * scale.flatten()) if feeds_forward else plain(x) * scale.flatten()
        assert torch.allclose(layer(x), expected, atol=1e-6)


def test_model_without_keys_and_values_is_refused() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = nn.Linear(4, 4)

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])

    with pytest.raises(CapabilityError):
        places(Mixer())
