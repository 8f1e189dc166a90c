"""Which layers `find_targets` picks, on every tiny architecture, as peft itself would match them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftkit.errors import CapabilityError
from peftkit.methods.targets import find_targets, folded, in_blocks, linear_layers, target_layers

BERT_ATTENTION = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
T5_ENCODER = "transformer.encoder.block.{i}."
T5_DECODER = "transformer.decoder.block.{i}."
PROJECTIONS = "qkvo"
# Written down from the published architectures: full names per group with the layer number as {i}, and the new head.
LAYOUT: dict[str, dict[str, list[str]]] = {
    "bert": {
        "attention": [f"bert.encoder.layer.{{i}}.{name}" for name in BERT_ATTENTION],
        "mlp": ["bert.encoder.layer.{i}.intermediate.dense", "bert.encoder.layer.{i}.output.dense"],
        "outside": ["bert.pooler.dense"],
        "head": ["classifier"],
    },
    "distilbert": {
        "attention": [f"distilbert.transformer.layer.{{i}}.attention.{x}_lin" for x in ("q", "k", "v", "out")],
        "mlp": ["distilbert.transformer.layer.{i}.ffn.lin1", "distilbert.transformer.layer.{i}.ffn.lin2"],
        "outside": [],
        "head": ["pre_classifier", "classifier"],
    },
    "roberta": {
        "attention": [f"roberta.encoder.layer.{{i}}.{name}" for name in BERT_ATTENTION],
        "mlp": ["roberta.encoder.layer.{i}.intermediate.dense", "roberta.encoder.layer.{i}.output.dense"],
        "outside": [],
        "head": ["classifier"],
    },
    "gpt2": {
        "attention": ["transformer.h.{i}.attn.c_attn", "transformer.h.{i}.attn.c_proj"],
        "mlp": ["transformer.h.{i}.mlp.c_fc", "transformer.h.{i}.mlp.c_proj"],
        "outside": [],
        "head": ["score"],
    },
    "llama": {
        "attention": [f"model.layers.{{i}}.self_attn.{x}_proj" for x in PROJECTIONS],
        "mlp": [f"model.layers.{{i}}.mlp.{x}_proj" for x in ("gate", "up", "down")],
        "outside": [],
        "head": ["score"],
    },
    "t5": {
        "attention": [
            *(f"{T5_ENCODER}layer.0.SelfAttention.{x}" for x in PROJECTIONS),
            *(f"{T5_DECODER}layer.0.SelfAttention.{x}" for x in PROJECTIONS),
            *(f"{T5_DECODER}layer.1.EncDecAttention.{x}" for x in PROJECTIONS),
        ],
        "mlp": [
            *(f"{T5_ENCODER}layer.1.DenseReluDense.{x}" for x in ("wi", "wo")),
            *(f"{T5_DECODER}layer.2.DenseReluDense.{x}" for x in ("wi", "wo")),
        ],
        "outside": [],
        "head": ["classification_head"],
    },
}
GROUPS = {"attention": ("attention",), "mlp": ("mlp",), "all-linear": ("attention", "mlp", "outside")}
Classifier = Callable[[str], Any]


@pytest.fixture(scope="module")
def classifier(checkpoint: Callable[[str], Path]) -> Classifier:
    from transformers import AutoModelForSequenceClassification

    models = {name: AutoModelForSequenceClassification.from_pretrained(checkpoint(name)) for name in LAYOUT}
    return models.__getitem__


def picked(model: nn.Module, endings: list[str]) -> set[str]:
    """Every module that peft would adapt: those named so, or whose name ends so after a dot."""
    names = [name for name, _ in model.named_modules()]
    return {name for name in names if any(name == end or name.endswith(f".{end}") for end in endings)}


def expected(architecture: str, group: str) -> set[str]:
    patterns = [pattern for part in GROUPS[group] for pattern in LAYOUT[architecture][part]]
    return {pattern.format(i=layer) for pattern in patterns for layer in (0, 1)}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("architecture", LAYOUT)
def test_group_selects_exactly_its_layers(classifier: Classifier, architecture: str, group: Any) -> None:
    model = classifier(architecture)
    found = find_targets(model, group, head_modules=LAYOUT[architecture]["head"])
    assert picked(model, found) == expected(architecture, group)
    assert found == sorted(set(found))


@pytest.mark.parametrize("architecture", LAYOUT)
def test_groups_do_not_overlap_and_leave_out_only_the_head(classifier: Classifier, architecture: str) -> None:
    model = classifier(architecture)
    head = LAYOUT[architecture]["head"]
    every = set(linear_layers(model))
    chosen = picked(model, find_targets(model, "all-linear", head_modules=head))
    assert {name.split(".")[0] for name in every - chosen} == set(head)
    attention, mlp = (picked(model, find_targets(model, group, head_modules=head)) for group in ("attention", "mlp"))
    assert not attention & mlp


def test_endings_are_short_where_they_are_unambiguous(classifier: Classifier) -> None:
    assert find_targets(classifier("gpt2"), "attention", head_modules=["score"]) == ["attn.c_attn", "attn.c_proj"]
    assert find_targets(classifier("llama"), ("q_proj", "v_proj"), head_modules=["score"]) == [
        "self_attn.q_proj",
        "self_attn.v_proj",
    ]


def test_endings_are_full_names_where_short_ones_would_catch_others(classifier: Classifier) -> None:
    # "output.dense" alone would also end attention.output.dense
    assert find_targets(classifier("bert"), "mlp", head_modules=["classifier"]) == sorted(expected("bert", "mlp"))


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (("query",), {f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)}),
        (("attention.output.dense",), {f"bert.encoder.layer.{i}.attention.output.dense" for i in (0, 1)}),
        (("layer.1.intermediate.dense",), {"bert.encoder.layer.1.intermediate.dense"}),
        (("bert.pooler.dense",), {"bert.pooler.dense"}),
        ((r".*layer\.1\..*(query|key)",), {f"bert.encoder.layer.1.attention.self.{x}" for x in ("query", "key")}),
        ((r".*\.pooler\..*", "layer.0.output.dense"), {"bert.pooler.dense", "bert.encoder.layer.0.output.dense"}),
        (
            ("query", "pooler.dense"),
            {"bert.pooler.dense", *(f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1))},
        ),
    ],
)
def test_patterns_select_by_the_end_of_the_name_or_the_whole(
    classifier: Classifier, patterns: tuple[str, ...], wanted: set[str]
) -> None:
    model = classifier("bert")
    assert picked(model, find_targets(model, patterns, head_modules=["classifier"])) == wanted


def test_pattern_never_selects_the_head(classifier: Classifier) -> None:
    model = classifier("roberta")  # its head has a layer classifier.dense
    chosen = picked(model, find_targets(model, ("dense",), head_modules=["classifier"]))
    assert chosen == {name for name in linear_layers(model) if name.endswith(".dense") and name.startswith("roberta.")}
    assert len(chosen) == 6


def test_missing_pattern_names_what_the_model_has(classifier: Classifier) -> None:
    message = r"'q_proj' is the end of no linear layer's name.*bert\.encoder\.layer\.\*\.attention\.self\.query"
    with pytest.raises(CapabilityError, match=message):
        find_targets(classifier("bert"), ("query", "q_proj"), head_modules=["classifier"])


@pytest.mark.parametrize("pattern", ["classifier", "uery", "encoder", "dropout", ""])
def test_patterns_that_end_no_linear_layer_are_refused(classifier: Classifier, pattern: str) -> None:
    with pytest.raises(CapabilityError, match=f"{pattern!r} is the end of no linear layer"):
        find_targets(classifier("bert"), (pattern,), head_modules=["classifier"])


def test_regular_expression_never_selects_the_head(classifier: Classifier) -> None:
    chosen = picked(classifier("bert"), find_targets(classifier("bert"), (".*",), head_modules=["classifier"]))
    assert chosen == expected("bert", "all-linear")


def test_wrong_regular_expression_says_what_is_wrong(classifier: Classifier) -> None:
    with pytest.raises(CapabilityError, match=r"'\(query' is the end of no .* it is wrong: missing \), unterminated"):
        find_targets(classifier("bert"), ("(query",), head_modules=["classifier"])


def test_layers_are_found_on_a_model_without_weights(classifier: Classifier) -> None:
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        bare = AutoModelForSequenceClassification.from_config(classifier("gpt2").config)
    assert {weight.device.type for weight in bare.parameters()} == {"meta"}
    for group in GROUPS:
        assert picked(bare, find_targets(bare, group, head_modules=["score"])) == expected("gpt2", group)  # type: ignore[arg-type] # a group's name


def test_blocks_of_both_stacks_count_from_zero(classifier: Classifier) -> None:
    model = classifier("t5")
    every = target_layers(model, "all-linear", head_modules=["classification_head"])
    found = in_blocks(model, every, [1])
    assert set(found) == {name for name in every if ".block.1." in name}
    assert {name.split(".")[1] for name in found} == {"encoder", "decoder"}


def test_model_without_blocks_has_none_to_choose() -> None:
    with pytest.raises(CapabilityError, match=r"method\.layers needs repeated blocks, but Sequential has none"):
        in_blocks(nn.Sequential(nn.Linear(2, 2)), ["0"], [0])


def test_no_pattern_at_all_is_refused(classifier: Classifier) -> None:
    with pytest.raises(CapabilityError, match=r"target_modules \(\) matches no linear layer of BertFor"):
        find_targets(classifier("bert"), (), head_modules=["classifier"])


def test_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(
        CapabilityError, match="'attention' matches no linear layer of Sequential; it has: none that peft"
    ):
        find_targets(nn.Sequential(nn.Conv1d(1, 1, 1)), "attention", head_modules=[])


def test_modules_new_inside_the_base_are_no_targets(classifier: Classifier) -> None:
    model = classifier("bert")
    found = find_targets(model, "all-linear", head_modules=["classifier", "bert.pooler.dense"])
    assert picked(model, found) == expected("bert", "attention") | expected("bert", "mlp")


@pytest.mark.parametrize(("architecture", "output"), [("gpt2", "lm_head"), ("llama", "lm_head"), ("t5", "lm_head")])
def test_output_embeddings_are_no_linear_layer(
    checkpoint: Callable[[str], Path], architecture: str, output: str
) -> None:
    import transformers

    auto = transformers.AutoModelForSeq2SeqLM if architecture == "t5" else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(checkpoint(architecture))
    assert isinstance(model.get_submodule(output), nn.Linear)
    assert output not in linear_layers(model)
    assert len(linear_layers(model)) == 2 * sum(len(LAYOUT[architecture][group]) for group in ("attention", "mlp"))


def test_quantized_layers_count_as_linear() -> None:
    class Stored4Bit(nn.Linear):
        """Quantized layers subclass `nn.Linear`."""

    block = nn.ModuleDict({"attention": Stored4Bit(2, 2), "ffn": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    model = nn.ModuleDict({"layers": nn.ModuleList([block])})
    assert linear_layers(model) == ["layers.0.attention", "layers.0.ffn"]
    assert find_targets(model, "attention", head_modules=[]) == ["attention"]


def test_folded_names_each_kind_of_layer_once() -> None:
    names = ["h.0.attn", "h.1.attn", "h.10.mlp.2", "wte", "v2.attn"]
    assert folded(names) == ["h.*.attn", "h.*.mlp.*", "wte", "v2.attn"]
    assert folded([]) == []
