"""The ends of sub-layers, against names read off the architectures by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from peftkit.errors import CapabilityError
from peftkit.layers.sublayers import find_blocks, shortest_names

BERT = (["attention.output.dense"], ["attention.self.query"], "intermediate.dense", "output.dense")
# name of the last block, ends of its attention parts, query layers, first and last layer of its feed-forward part
LAST_BLOCKS = {
    "bert": ("bert.encoder.layer.1", *BERT),
    "distilbert": (
        "distilbert.transformer.layer.1",
        ["attention.out_lin"],
        ["attention.q_lin"],
        "ffn.lin1",
        "ffn.lin2",
    ),
    "roberta": ("roberta.encoder.layer.1", *BERT),
    "gpt2": ("transformer.h.1", ["attn.c_proj"], [], "mlp.c_fc", "mlp.c_proj"),
    "llama": ("model.layers.1", ["self_attn.o_proj"], ["self_attn.q_proj"], "mlp.gate_proj", "mlp.down_proj"),
    "t5": (
        "transformer.decoder.block.1",
        ["layer.0.SelfAttention.o", "layer.1.EncDecAttention.o"],
        ["layer.0.SelfAttention.q", "layer.1.EncDecAttention.q"],
        "layer.2.DenseReluDense.wi",
        "layer.2.DenseReluDense.wo",
    ),
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
INNER = {**SMALL, "intermediate_size": 64}
GROUPED = {**INNER, "num_key_value_heads": 2}
FURTHER = {
    # DeBERTa-v2: BERT's layout with other names for queries, keys and values
    "DebertaV2": (INNER, ["attention.output.dense"], "intermediate.dense", "output.dense"),
    "Albert": (
        {**INNER, "embedding_size": 16},
        ["albert_layers.0.attention.dense"],
        "albert_layers.0.ffn",
        "albert_layers.0.ffn_output",
    ),
    # Phi-3 makes its output projection first, and its gate is half of a layer
    "Phi3": ({**GROUPED, "pad_token_id": 0}, ["self_attn.o_proj"], "mlp.gate_up_proj", "mlp.down_proj"),
    "Qwen2": (GROUPED, ["self_attn.o_proj"], "mlp.gate_proj", "mlp.down_proj"),
    "OPT": ({**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}, ["self_attn.out_proj"], "fc1", "fc2"),
    "GPTNeoX": (INNER, ["attention.dense"], "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
}


@pytest.mark.parametrize("name", LAST_BLOCKS)
def test_blocks_of_the_tiny_models(classifier: Callable[..., Any], name: str) -> None:
    blocks = find_blocks(classifier(name))
    assert len(blocks) == (4 if name == "t5" else 2)
    last = blocks[-1]
    found = (last.name, list(last.attention_outputs), list(last.queries))
    assert (*found, last.feed_forward_input, last.feed_forward_output) == LAST_BLOCKS[name]


def test_t5_encoder_has_no_cross_attention(classifier: Callable[..., Any]) -> None:
    first = find_blocks(classifier("t5"))[0]
    assert first.name == "transformer.encoder.block.0"
    assert first.attention_outputs == ("layer.0.SelfAttention.o",)
    assert first.feed_forward_output == "layer.1.DenseReluDense.wo"


@pytest.mark.parametrize("family", FURTHER)
def test_blocks_of_further_families_without_weights(family: str) -> None:
    import transformers

    options, attention, first, last = FURTHER[family]
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(getattr(transformers, f"{family}Config")(**options))
    blocks = find_blocks(model)
    assert [list(block.attention_outputs) for block in blocks] == [attention]
    assert [(block.feed_forward_input, block.feed_forward_output) for block in blocks] == [(first, last)]


def test_bert_decoder_ends_in_two_attentions() -> None:
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        model = BertModel(BertConfig(**INNER, is_decoder=True, add_cross_attention=True))
    assert find_blocks(model)[0].attention_outputs == ("attention.output.dense", "crossattention.output.dense")


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            "Mixtral",
            {**GROUPED, "num_local_experts": 2},
            r"layers\.0 \(MixtralDecoderLayer\) cannot be told apart.*o_proj \(32 -> 32\); elsewhere: none",
        ),
        (
            "Mamba",
            {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 50, "state_size": 4},
            r"found in attention: none; elsewhere: mixer\.in_proj \(32 -> 128\)",
        ),
        ("XLNet", {"d_model": 32, "n_layer": 1, "n_head": 2, "d_inner": 64, "vocab_size": 50}, "ff.layer_1"),
    ],
)
def test_structure_that_is_not_understood_is_listed(family: str, options: dict[str, Any], message: str) -> None:
    import transformers

    with torch.device("meta"):
        model = transformers.AutoModel.from_config(getattr(transformers, f"{family}Config")(**options))
    with pytest.raises(CapabilityError, match=message):
        find_blocks(model)


def test_model_without_blocks_is_refused() -> None:
    with pytest.raises(CapabilityError, match="Sequential has no stack of repeated blocks"):
        find_blocks(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))


def test_names_are_short_only_where_that_is_exact(classifier: Callable[..., Any]) -> None:
    model = classifier("bert")
    ends = [f"bert.encoder.layer.{i}.output.dense" for i in (0, 1)]
    assert shortest_names(model, ends) == ends  # attention.output.dense ends so as well
    both = [*ends, *(f"bert.encoder.layer.{i}.attention.output.dense" for i in (0, 1))]
    assert shortest_names(model, both) == ["attention.output.dense", "output.dense"]
    assert shortest_names(model, ["bert.encoder.layer.1.intermediate.dense"]) == [
        "bert.encoder.layer.1.intermediate.dense"
    ]


@pytest.mark.parametrize("style", ["houlsby", "parallel"])
@pytest.mark.parametrize("name", LAST_BLOCKS)
def test_adapted_model_has_the_same_blocks(classifier: Callable[..., Any], name: str, style: str) -> None:
    from peft import get_peft_model

    from peftkit.layers.bottleneck import BottleneckConfig

    model = classifier(name)
    before = find_blocks(model)
    get_peft_model(model, BottleneckConfig(style=style, width=2))
    assert find_blocks(model) == before


def test_projections_of_the_input_are_no_output_whatever_their_order() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(8, 8)
            self.query, self.key_value = nn.Linear(8, 8), nn.Linear(8, 8)

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Linear(8, 24), nn.Linear(24, 8)
            self.mixer_attn = Attention()

    (block,) = find_blocks(nn.ModuleDict({"units": nn.ModuleList([Unit()])}))
    assert block.attention_outputs == ("mixer_attn.out",)
    assert block.queries == ("mixer_attn.query",)
    assert (block.feed_forward_input, block.feed_forward_output) == ("wide", "narrow")
