"""How many weights train: closed formulas of the papers, over the layers of the tiny checkpoints in numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import pytest
from contracts.cells import ARCHITECTURES, Cell, variants

Checkpoint = Callable[[str], Path]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
H, F = 32, 64
"""Width of the hidden states, and of the inside of a feed-forward layer."""


@dataclass(frozen=True)
class Plan:
    """A tiny checkpoint in numbers.

    Args:
        layers: inputs and outputs of every linear layer below the head.
        biases: widths of all biases, those of norms included.
        norms: parameters of all norms.
        top: parameters of the two last blocks of every stack, and of what lies above them.
        keys: width of keys, which is that of values, in one layer.
        scaled: widths that (IA)3 scales.
        blocks: blocks of all stacks; sublayers: attentions and feed-forward layers in them.
        kinds: outputs of layers that differ in name or place, for methods that share weights among the others.
        inputs: streams of embedded input; an encoder-decoder has two.
        head: parameters of the new head.
    """

    layers: list[tuple[int, int]]
    biases: int
    norms: int
    top: int
    keys: int
    scaled: int
    blocks: int
    sublayers: int
    kinds: int
    inputs: int = 1
    head: int = 0


_BERT_BLOCK = [(H, H)] * 4 + [(H, F), (F, H)]
_BERT_BIASES = 2 * (5 * H + F + 2 * H) + H  # six layers and two norms in each block, the norm of the embeddings
_BERT_TOP = 2 * (sum(i * o + o for i, o in _BERT_BLOCK) + 2 * 2 * H)
_GPT2_BLOCK = [(H, 3 * H), (H, H), (H, F), (F, H)]
_LLAMA_BLOCK = [(H, H), (H, H // 2), (H, H // 2), (H, H), (H, F), (H, F), (F, H)]
_T5_ENCODER = [(H, H)] * 4 + [(H, F), (F, H)]
_T5_DECODER = [(H, H)] * 8 + [(H, F), (F, H)]
_BERT = {"norms": 5 * 2 * H, "keys": H, "scaled": 2 * (2 * H + F), "blocks": 2, "sublayers": 4}
PLANS = {
    "bert_sequence": Plan(
        [*2 * _BERT_BLOCK, (H, H)],  # and the pooler
        biases=_BERT_BIASES + H,
        top=_BERT_TOP + H * H + H,
        kinds=6 * H + F,
        head=2 * H + 2,
        **_BERT,
    ),
    "bert_token": Plan(2 * _BERT_BLOCK, biases=_BERT_BIASES, top=_BERT_TOP, kinds=5 * H + F, head=3 * H + 3, **_BERT),
    "gpt2": Plan(
        2 * _GPT2_BLOCK,
        biases=2 * (3 * H + H + F + H + 2 * H) + H,
        norms=5 * 2 * H,
        top=2 * (sum(i * o + o for i, o in _GPT2_BLOCK) + 2 * 2 * H) + 2 * H,
        keys=H,
        scaled=2 * (3 * H + F),  # keys, values and queries are one layer
        blocks=2,
        sublayers=4,
        kinds=0,
    ),
    "llama": Plan(
        2 * _LLAMA_BLOCK,
        biases=0,
        norms=5 * H,
        top=2 * (sum(i * o for i, o in _LLAMA_BLOCK) + 2 * H) + H,
        keys=H // 2,
        scaled=2 * (2 * (H // 2) + F),
        blocks=2,
        sublayers=4,
        kinds=sum(o for _, o in _LLAMA_BLOCK),
    ),
    "t5": Plan(
        2 * _T5_ENCODER + 2 * _T5_DECODER,
        biases=0,
        norms=(2 * 2 + 1 + 2 * 3 + 1) * H,
        # both stacks whole, with the two tables of relative positions: 32 distances, 2 heads
        top=2 * sum(i * o for i, o in _T5_ENCODER + _T5_DECODER) + 12 * H + 2 * 32 * 2,
        keys=H,
        scaled=2 * (2 * H + F) + 2 * (4 * H + F),
        blocks=4,
        sublayers=10,
        kinds=9 * H + F,
        inputs=2,
    ),
}
WIDTH = 8
BOTTLENECK = H * WIDTH + WIDTH + WIDTH * H + H
"""Down and up, with biases."""
VIRTUAL, RANK = 20, 8


def _per_layer(formula: Callable[[int, int], int]) -> Callable[[Plan], int]:
    return lambda plan: sum(formula(i, o) for i, o in plan.layers)


def _kronecker(i: int, o: int) -> int:
    """lokr: each side as a product of two sizes nearest to its root; the larger factor low-rank where that is less."""
    (small_i, large_i), (small_o, large_o) = (
        next((size // large, large) for large in range(1, size + 1) if size % large == 0 and large**2 >= size)
        for size in (i, o)
    )
    whole = large_i * large_o
    return small_i * small_o + (RANK * (large_i + large_o) if max(large_i, large_o) / 2 > RANK else whole)


_lora = _per_layer(lambda i, o: RANK * (i + o))
_mlp = 3 * (H * H + H)
FORMULAS: Mapping[str, Callable[[Plan], int]] = {
    "adalora": _per_layer(lambda i, o: 12 * (i + o) + 12),  # starts with 1.5 times the rank; and the singular values
    "bitfit": lambda plan: plan.biases,
    "boft": _per_layer(lambda i, o: i // 8 * 8 * 8 + o),
    "bottleneck": lambda plan: plan.blocks * BOTTLENECK,
    "bottleneck houlsby": lambda plan: plan.sublayers * BOTTLENECK,
    "bottleneck parallel": lambda plan: plan.blocks * BOTTLENECK,
    "bottleneck scaled_parallel": lambda plan: plan.blocks * BOTTLENECK,
    "dora": _per_layer(lambda i, o: RANK * (i + o) + o),
    "fourierft": lambda plan: len(plan.layers) * min(1000, *(i * o for i, o in plan.layers)),
    "head_only": lambda plan: 0,
    "hira": _per_layer(lambda i, o: 32 * (i + o)),
    "ia3": lambda plan: plan.scaled,
    "last_layers": lambda plan: plan.top,
    "layer_norm": lambda plan: plan.norms,
    "loha": _per_layer(lambda i, o: 2 * RANK * (i + o)),
    "lokr": _per_layer(_kronecker),
    "lora": _lora,
    "lora corda": _lora,
    "lora freeze_a": _per_layer(lambda i, o: RANK * o),
    "lora loftq": _lora,
    "lora olora": _lora,
    "lora pissa": _lora,
    "miss": _per_layer(lambda i, o: 16 * o),
    "oft": _per_layer(lambda i, o: i // 32 * (32 * 31 // 2)),
    "p_tuning": lambda plan: plan.inputs * VIRTUAL * H + _mlp,
    # Lily: A of each layer, one pair of B per kind of layer, a router
    "peft": lambda plan: sum(32 * i + 32 * 2 for i, _ in plan.layers) + 2 * 32 * plan.kinds,
    "prefix": lambda plan: VIRTUAL * 2 * 2 * plan.keys,
    "prefix reparameterised": lambda plan: VIRTUAL * plan.keys + plan.keys * H + H + (H + 1) * 2 * 2 * plan.keys,
    "prompt": lambda plan: plan.inputs * VIRTUAL * H,
    "randlora": _per_layer(lambda i, o: ceil(min(i, o) / 32) * (32 + min(i, o))),
    "shira": _per_layer(lambda i, o: RANK * (i + o)),
    "stack": lambda plan: _lora(plan) + plan.norms,
    "trainable_tokens": lambda plan: 2 * H,
    "vera": _per_layer(lambda i, o: 256 + o),
}
WHOLE = {"full", "gradual_unfreezing"}
"""They train every weight that the model has."""
SHARED_OUT = {"lora eva"}
"""It gives the layers ranks of their own, from the data; together they have as many as lora."""


def test_every_variant_has_a_formula() -> None:
    assert set(FORMULAS) | WHOLE | SHARED_OUT == set(variants())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("variant", sorted(variants()))
def test_trainable_parameters_follow_the_closed_formula(
    variant: str, architecture: str, checkpoint: Checkpoint
) -> None:
    storage = "nf4" if variant == "lora loftq" else "fp32"
    cell = Cell.of(variant, architecture, storage, checkpoint=checkpoint)
    if refusal := cell.refusal():
        pytest.skip(f"refused: {refusal}")
    model = cell.tuned()
    plan = PLANS[architecture]
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    if variant in WHOLE:
        assert trainable == sum(weight.numel() for weight in cell.base().parameters())
    elif variant in SHARED_OUT:
        ranks = [len(weight) for name, weight in model.named_parameters() if ".lora_A." in name]
        assert sum(ranks) == RANK * len(plan.layers)
    else:
        assert trainable == FORMULAS[variant](plan) + plan.head
