"""LoRA on every tiny architecture: what trains, what is saved, and what the update computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from peftkit.methods import TuningContext, methods

RANK = 3
TEXTS = ["The soup was lovely.", "A dull film.", "kind"]
HEADS = {
    "bert": ("classifier",),
    "distilbert": ("pre_classifier", "classifier"),
    "roberta": ("classifier",),
    "gpt2": ("score",),
    "llama": ("score",),
    "t5": ("classification_head",),
}
# Width 32, inner width 64, 2 layers, 2 labels. An update of a layer (i -> o) has rank * (i + o) weights.
SQUARE, WIDE = 32 + 32, 32 + 64
UPDATES = {
    "bert": 2 * (4 * SQUARE + 2 * WIDE) + SQUARE,  # and the pooler
    "distilbert": 2 * (4 * SQUARE + 2 * WIDE),
    "roberta": 2 * (4 * SQUARE + 2 * WIDE),
    "gpt2": 2 * ((32 + 96) + SQUARE + 2 * WIDE),  # query, key and value are one layer 32 -> 96
    "llama": 2 * (2 * SQUARE + 2 * (32 + 16) + 3 * WIDE),  # 2 of 4 heads for keys and values: 32 -> 16
    "t5": 2 * (4 * SQUARE + 2 * WIDE) + 2 * (8 * SQUARE + 2 * WIDE),  # encoder, decoder with cross-attention
}
OUT = 2 * 32 + 2
HEAD_WEIGHTS = {
    "bert": OUT,
    "distilbert": 32 * 32 + 32 + OUT,
    "roberta": 32 * 32 + 32 + OUT,
    "gpt2": 2 * 32,  # no bias
    "llama": 2 * 32,
    "t5": 32 * 32 + 32 + OUT,
}


@pytest.fixture
def load(checkpoint: Callable[[str], Path]) -> Callable[..., Any]:
    """Function from architecture and seed to a classifier whose head is drawn with that seed."""

    def classifier(name: str, *, seed: int = 0) -> Any:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint(name), num_labels=2)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint(name))
        model.config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token else tokenizer.eos_token_id
        return model.eval()

    return classifier


@pytest.fixture
def batch(checkpoint: Callable[[str], Path]) -> Callable[[str], Any]:
    def encoded(name: str) -> Mapping[str, torch.Tensor]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(checkpoint(name))
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tokenizer(TEXTS, padding=True, return_tensors="pt")

    return encoded


def tune(model: Any, name: str, **options: Any) -> Any:
    torch.manual_seed(11)
    context = TuningContext(peft_task_type="SEQ_CLS", head_modules=HEADS[name], total_steps=10)
    return methods.build({"name": "lora", "rank": RANK, "alpha": 6, **options}).apply(model, context)


def step(model: Any, inputs: Mapping[str, torch.Tensor]) -> None:
    """Two steps of SGD: the first moves B, the second A as well."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**inputs).logits, torch.tensor([0, 1, 1])).backward()
        optimizer.step()


def logits(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("name", HEADS)
def test_trainable_parameters_follow_the_closed_formula(load: Callable[..., Any], name: str) -> None:
    model = tune(load(name), name)
    trainable = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    assert sum(count for n, count in trainable.items() if "lora_" in n) == RANK * UPDATES[name]
    assert sum(count for n, count in trainable.items() if "lora_" not in n) == HEAD_WEIGHTS[name]


@pytest.mark.parametrize("name", HEADS)
def test_update_starts_at_zero(load: Callable[..., Any], batch: Callable[[str], Any], name: str) -> None:
    base = load(name)
    before = logits(base, batch(name))
    assert torch.equal(logits(tune(base, name), batch(name)), before)


@pytest.mark.parametrize("name", HEADS)
def test_a_step_moves_update_and_head_and_nothing_else(
    load: Callable[..., Any], batch: Callable[[str], Any], name: str
) -> None:
    model = tune(load(name), name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    step(model, batch(name))
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) != p.requires_grad, n


@pytest.mark.parametrize("name", HEADS)
def test_saved_adapter_reloads_with_bit_equal_logits(
    load: Callable[..., Any], batch: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    from peft import PeftModel

    model = tune(load(name, seed=1), name)
    step(model, batch(name))
    model.save_pretrained(tmp_path)
    # Another seed gives another head: only what was saved can make the logits equal.
    again = PeftModel.from_pretrained(load(name, seed=2), tmp_path)
    assert torch.equal(logits(again, batch(name)), logits(model, batch(name)))


@pytest.mark.parametrize("name", HEADS)
def test_merging_keeps_the_outputs(load: Callable[..., Any], batch: Callable[[str], Any], name: str) -> None:
    assert methods.get("lora").mergeable
    model = tune(load(name), name)
    step(model, batch(name))
    unmerged = logits(model, batch(name))
    merged = logits(model.merge_and_unload(), batch(name))
    # W x + s B A x and (W + s B A) x differ in the order of float32 sums only.
    torch.testing.assert_close(merged, unmerged, rtol=1e-4, atol=1e-5)
    assert not torch.equal(unmerged, logits(load(name), batch(name)))


def test_update_is_scaled_by_alpha_over_rank(load: Callable[..., Any]) -> None:
    model = tune(load("bert"), "bert", rank=4, alpha=10, target_modules=["query"])
    layer = model.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        b.normal_(generator=torch.Generator().manual_seed(3))
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(4))
    base = layer.base_layer
    expected = x @ base.weight.T + base.bias + (10 / 4) * (x @ a.T @ b.T)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_only(load: Callable[..., Any], batch: Callable[[str], Any]) -> None:
    model = tune(load("gpt2"), "gpt2", dropout=0.5)
    step(model, batch("gpt2"))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and module.p != 0.5:
            module.p = 0.0  # the base's own
    assert torch.equal(logits(model, batch("gpt2")), logits(model, batch("gpt2")))
    model.train()
    with torch.no_grad():
        first, second = (model(**batch("gpt2")).logits for _ in range(2))
    assert not torch.equal(first, second)


def test_targets_reach_peft(load: Callable[..., Any]) -> None:
    model = tune(load("llama"), "llama", target_modules=("q_proj", "down_proj"))
    adapted = {n.rpartition(".lora_A")[0].rpartition(".")[2] for n, _ in model.named_parameters() if "lora_A" in n}
    assert adapted == {"q_proj", "down_proj"}


def test_no_head_is_saved_where_none_is_new(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(checkpoint("llama"))
    context = TuningContext(peft_task_type="CAUSAL_LM", head_modules=(), total_steps=1)
    model = methods.build("lora").apply(base, context)
    model.save_pretrained(tmp_path)
    assert {key.rpartition(".lora_")[2] for key in load_file(tmp_path / "adapter_model.safetensors")} == {
        "A.weight",
        "B.weight",
    }


@pytest.mark.parametrize(
    ("option", "value"),
    [("rank", 0), ("rank", 2.5), ("alpha", 0), ("dropout", 1.0), ("dropout", -0.1), ("target_modules", "query")],
)
def test_options_out_of_range_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=option):
        methods.build({"name": "lora", option: value})
