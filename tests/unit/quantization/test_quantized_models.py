"""Models whose base is quantized: what is stored in which type, and that training an adapter leaves it alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from peftkit.models import LoadedModel, load_adapter_onto, quiet_libraries

Load = Callable[..., LoadedModel]
Tuned = Callable[..., Any]
Batch = Callable[[LoadedModel], dict[str, Any]]

SINGLE = {"name": "nf4", "double_quantization": False}
STORED = {"nf4": "nf4", "nf4 single": SINGLE, "fp4": "fp4", "int8": "int8"}
BITS = {"nf4": 4, "nf4 single": 4, "fp4": 4, "int8": 8}
HEADS = {
    "bert": ("classifier",),
    "distilbert": ("pre_classifier", "classifier"),
    "roberta": ("classifier",),
    "gpt2": ("score",),
    "llama": ("score",),
    "t5": ("classification_head",),
}
# Linear layers of two blocks; BERT has a pooler too, GPT-2 one layer for query, key and value, T5 twelve more for
# attention in the decoder, and its two `wo` of each stack are left in float32, as its authors ask.
LAYERS = {"bert": 13, "distilbert": 12, "roberta": 12, "gpt2": 8, "llama": 14, "t5": 2 * 5 + 2 * 9}
QUANTIZED = ("Linear4bit", "Linear8bitLt")


@pytest.fixture(params=STORED)
def stored(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def quantized_layers(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if type(module).__name__ in QUANTIZED}


def bytes_of(layer: nn.Module) -> int:
    """Weight and scales as they lie in memory, without the bias."""
    weight: Any = layer.weight
    if weight.dtype == torch.int8:
        return int(weight.nbytes + weight.SCB.nbytes)
    state = weight.quant_state
    return int(weight.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0))


@pytest.mark.parametrize("name", HEADS)
def test_linear_layers_are_quantized_and_nothing_else(load: Load, name: str, stored: str) -> None:
    base, plain = load(name, STORED[stored]), load(name)
    assert base.head_modules == plain.head_modules == HEADS[name]
    layers = quantized_layers(base.model)
    assert len(layers) == LAYERS[name]
    assert not any(layer.startswith(HEADS[name]) for layer in layers)
    code = torch.int8 if stored == "int8" else torch.uint8
    for layer, module in layers.items():
        assert module.weight.dtype == code
        weights = math.prod(module.weight.quant_state.shape) if stored != "int8" else module.weight.numel()
        assert weights == plain.model.get_submodule(layer).weight.numel(), "Conv1D layers are quantized as well"
        assert not module.weight.requires_grad
        expected = {"nf4": 4 + 8 / 64, "nf4 single": 4 + 32 / 64, "fp4": 4 + 8 / 64, "int8": 8}[stored]
        # and 32 bits for each of 256 blocks, or for each of int8's rows of at least 16 weights
        assert expected <= 8 * bytes_of(module) / weights <= expected + (32 / 16 if stored == "int8" else 32 / 512)
    others = [weight.dtype for name, weight in base.model.named_parameters() if name.rpartition(".")[0] not in layers]
    assert set(others) == {torch.float32}


def test_norms_and_heads_are_float32_where_the_rest_is_16_bits(load: Load, stored: str) -> None:
    for name in ("bert", "llama"):
        base = load(name, STORED[stored], dtype=torch.bfloat16)
        dtypes = {
            kind: {weight.dtype for module in base.model.modules() if test(module) for weight in module.parameters()}
            for kind, test in {
                "norms": lambda module: "Norm" in type(module).__name__,
                "embeddings": lambda module: isinstance(module, nn.Embedding),
            }.items()
        }
        assert dtypes == {"norms": {torch.float32}, "embeddings": {torch.bfloat16}}
        for head in base.head_modules:
            assert {weight.dtype for weight in base.model.get_submodule(head).parameters()} == {torch.float32}


def test_modules_to_keep_are_kept(load: Load, stored: str) -> None:
    kept = "bert.encoder.layer.1"
    base = load("bert", STORED[stored], keep=(kept,))
    assert type(base.model.get_submodule(f"{kept}.attention.self.query")) is nn.Linear
    assert len(quantized_layers(base.model)) == 13 - 6


def test_modules_that_the_checkpoint_lacks_are_kept(
    load: Load, tuned: Tuned, batch: Batch, tiny_bert: Path, tmp_path: Path, stored: str
) -> None:
    """A masked language model has no pooler: it starts random as the head does, and trains with it."""
    from transformers import AutoTokenizer, BertForMaskedLM

    with quiet_libraries():
        BertForMaskedLM.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    base = load(tmp_path, STORED[stored])
    assert base.head_modules == ("classifier", "bert.pooler.dense")
    assert type(base.model.get_submodule("bert.pooler.dense")) is nn.Linear
    model = tuned(base, bits=BITS[stored])
    model(**batch(base)).logits.sum().backward()
    assert model.get_parameter("base_model.model.bert.pooler.dense.modules_to_save.default.weight").grad is not None


def trained(model: Any, inputs: dict[str, Any], *, steps: int = 3) -> Any:
    """A few steps, with an evaluation between them, which must not change how the base is stored."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    for _ in range(steps):
        model.train()
        model(**inputs).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.eval()(**inputs)
    return model


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_base_stays_bit_equal_and_the_adapter_reloads_bit_equal(
    load: Load, tuned: Tuned, batch: Batch, tmp_path: Path, name: str, stored: str
) -> None:
    base = load(name, STORED[stored])
    inputs = batch(base)
    model = tuned(base, bits=BITS[stored])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if torch.is_tensor(tensor)}
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        start = model.eval()(**inputs).logits
    trained(model, inputs)
    after = model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == trainable, "scales and codes are in the state too"
    with torch.no_grad():
        outputs = model(**inputs).logits
    assert (outputs - start).abs().max() > 1e-3
    with quiet_libraries():
        model.save_pretrained(tmp_path)
    again = load_adapter_onto(load(name, STORED[stored]).model, tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, outputs)


def test_adalora_reloads_bit_equal(load: Load, tuned: Tuned, batch: Batch, tmp_path: Path, stored: str) -> None:
    base = load("llama", STORED[stored])
    model = trained(tuned(base, "adalora", bits=BITS[stored]), batch(base))
    with quiet_libraries():
        model.save_pretrained(tmp_path)
    again = load_adapter_onto(load("llama", STORED[stored]).model, tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**batch(base)).logits, model(**batch(base)).logits)


def test_disabled_adapter_is_the_quantized_base(load: Load, tuned: Tuned, batch: Batch, stored: str) -> None:
    base = load("llama", STORED[stored])
    inputs = batch(base)
    with torch.no_grad():
        outputs = base.model(**inputs).logits
    model = trained(tuned(base, bits=BITS[stored]), inputs)
    assert isinstance(model, PeftModel)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(**inputs).logits, outputs)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_gradient_checkpointing_gives_the_same_gradients(
    load: Load, tuned: Tuned, batch: Batch, name: str, stored: str
) -> None:
    gradients = []
    for recompute in (False, True):
        base = load(name, STORED[stored])
        model = tuned(base, bits=BITS[stored]).train()
        for module in model.modules():
            for option in ("p", "attention_dropout"):
                if isinstance(getattr(module, option, None), float):
                    setattr(module, option, 0.0)
        if recompute:
            model.base_model.model.activation_checkpointing_enable({"use_reentrant": False})
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        model(**batch(base), use_cache=False).logits.square().sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    assert gradients[0]
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trainable_weights_are_float32_on_a_16_bit_base(
    load: Load, tuned: Tuned, stored: str, dtype: torch.dtype
) -> None:
    model = tuned(load("llama", STORED[stored], dtype=dtype), bits=BITS[stored])
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == {torch.float32}
    assert dtype in {weight.dtype for weight in model.parameters()}
