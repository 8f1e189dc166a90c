"""Trained biases against the base's own biases, and as a citizen of peft."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftkit.errors import CapabilityError
from peftkit.layers.bias import BitFitConfig, BitFitLayer, find_biases

HEADS = {"bert": ["classifier"], "distilbert": ["pre_classifier", "classifier"], "roberta": ["classifier"]}
HEADS |= {"gpt2": ["score"]}
HEAD_WEIGHTS = {"bert": 66, "distilbert": 1056 + 66, "roberta": 1056 + 66, "gpt2": 64}
# Width 32, inner width 64, 2 layers: in each, biases of query, key, value, output (4 x 32), of the feed-forward part
# (64 + 32) and of two layer norms (2 x 32); and one layer norm outside.
PER_BLOCK = 4 * 32 + (64 + 32) + 2 * 32
COUNTS = {"bert": 2 * PER_BLOCK + 32 + 32, "distilbert": 2 * PER_BLOCK + 32}  # BERT has a pooler
COUNTS |= {"roberta": 2 * PER_BLOCK + 32, "gpt2": 2 * PER_BLOCK + 32}
Logits = Callable[[Any, Mapping[str, Tensor]], Tensor]


def adapted(model: Any, name: str, *, adapter: str = "default", **options: Any) -> Any:
    from peft import get_peft_model

    config = BitFitConfig(task_type="SEQ_CLS", modules_to_save=[*HEADS[name]], **options)
    return get_peft_model(model, config, adapter_name=adapter).eval()


@pytest.mark.parametrize("name", HEADS)
def test_outputs_are_those_of_the_base_with_other_biases(
    classifier: Callable[..., Any], batch: Any, randomized: Any, logits: Logits, name: str
) -> None:
    model = randomized(adapted(classifier(name), name))
    reference = classifier(name)
    changes = {
        n.removeprefix("base_model.model."): m.bitfit_bias["default"]
        for n, m in model.named_modules()
        if isinstance(m, BitFitLayer)
    }
    with torch.no_grad():
        for layer, change in changes.items():
            reference.get_submodule(layer).bias += change
    bare = dict(classifier(name).named_parameters())
    changed = {n for n, p in reference.named_parameters() if not torch.equal(p, bare[n])}
    inside = {n for n, _ in reference.named_parameters() if n.endswith(".bias") and n.split(".")[0] not in HEADS[name]}
    assert changed == inside  # every bias of the model outside its head
    # g(x) + b + d and g(x) + (b + d) differ in the order of float32 sums only
    torch.testing.assert_close(logits(model, batch(name)), logits(reference, batch(name)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_trainable_parameters_follow_the_closed_formula(classifier: Callable[..., Any], name: str) -> None:
    model = adapted(classifier(name), name)
    assert model.get_nb_trainable_parameters()[0] == COUNTS[name] + HEAD_WEIGHTS[name]
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_starts_as_the_base_and_can_be_switched_off_merged_and_unloaded(
    classifier: Callable[..., Any], batch: Any, randomized: Any, logits: Logits, name: str
) -> None:
    before = logits(classifier(name), batch(name))
    model = adapted(classifier(name), name)
    assert torch.equal(logits(model, batch(name)), before)
    changed = logits(randomized(model), batch(name))
    assert not torch.allclose(changed, before, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(logits(model, batch(name)), before)
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model, batch(name)), changed, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(logits(model, batch(name)), changed)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, batch(name)), changed, rtol=1e-4, atol=1e-5)
    assert not [m for m in merged.modules() if isinstance(m, BitFitLayer)]
    bare = randomized(adapted(classifier(name), name)).unload()
    assert torch.equal(logits(bare, batch(name)), before)


@pytest.mark.parametrize("name", HEADS)
def test_saved_adapter_reloads_with_bit_equal_logits(
    classifier: Callable[..., Any], batch: Any, randomized: Any, logits: Logits, tmp_path: Path, name: str
) -> None:
    from peft import PeftModel

    model = randomized(adapted(classifier(name, seed=1), name))
    model.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}):
        again = PeftModel.from_pretrained(classifier(name, seed=2), tmp_path, **options)
        assert torch.equal(logits(again, batch(name)), logits(model, batch(name)))
    native = classifier(name, seed=2)
    native.load_adapter(str(tmp_path))
    assert torch.equal(logits(native, batch(name)), logits(model, batch(name)))


def test_two_adapters_do_not_touch_each_other(
    classifier: Callable[..., Any], batch: Any, randomized: Any, logits: Logits
) -> None:
    first = logits(randomized(adapted(classifier("bert"), "bert")), batch("bert"))
    second = logits(
        randomized(adapted(classifier("bert"), "bert", adapter="second"), adapter="second", seed=6), batch("bert")
    )
    model = randomized(adapted(classifier("bert"), "bert"))
    config = BitFitConfig(task_type="SEQ_CLS", modules_to_save=["classifier"])
    model.add_adapter("second", config)
    assert config.target_modules == model.peft_config["default"].target_modules
    randomized(model, adapter="second", seed=6)
    assert torch.equal(logits(model, batch("bert")), first)
    model.set_adapter("second")
    assert torch.equal(logits(model, batch("bert")), second)
    kept = {n: p.detach().clone() for n, p in model.named_parameters() if ".default" in n}
    model(**batch("bert")).logits.sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    assert all(torch.equal(p, kept[n]) for n, p in model.named_parameters() if n in kept)
    model.set_adapter("default")
    assert torch.equal(logits(model, batch("bert")), first)
    model.delete_adapter("second")
    assert torch.equal(logits(model, batch("bert")), first)


def test_merged_adapters_add_up_and_come_apart_bit_by_bit() -> None:
    from peft import get_peft_model

    base = nn.Sequential(nn.Linear(2, 3))
    bias = base[0].bias.detach().clone()
    model = get_peft_model(base, BitFitConfig(target_modules=["0"]))
    model.add_adapter("second", BitFitConfig(target_modules=["0"]))
    layer = model.get_submodule("base_model.model.0")
    with torch.no_grad():
        layer.bitfit_bias["default"].copy_(torch.tensor([0.1, 1e-9, 3.0]))
        layer.bitfit_bias["second"].copy_(torch.tensor([1.0, 2.0, -3.0]))
    model.merge_adapter(["default"])
    with pytest.warns(UserWarning, match="additionally merging second"):
        model.merge_adapter(["second"])
    expected = bias + torch.tensor([0.1, 1e-9, 3.0]) + torch.tensor([1.0, 2.0, -3.0])
    torch.testing.assert_close(layer.base_layer.bias.data, expected)
    with model.disable_adapter():
        model(torch.zeros(1, 2))
    assert torch.equal(layer.base_layer.bias.data, bias)
    with torch.no_grad():
        layer.bitfit_bias["default"][1] = float("nan")
    with pytest.raises(ValueError, match="biases of adapters default are not finite"):
        layer.merge(safe_merge=True, adapter_names=["default"])


def test_16_bit_base_keeps_its_type(classifier: Callable[..., Any], batch: Any, randomized: Any) -> None:
    model = randomized(adapted(classifier("gpt2", dtype=torch.bfloat16), "gpt2"))
    assert {p.dtype for n, p in model.named_parameters() if "bitfit_bias" in n} == {torch.float32}
    layer = model.get_submodule("base_model.model.transformer.h.0.mlp.c_fc")
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = (layer.base_layer(x).float() + layer.bitfit_bias["default"]).bfloat16()
    assert torch.equal(layer(x), expected)
    layer.merge()
    assert layer.base_layer.bias.dtype == torch.bfloat16


def test_gradient_checkpointing_gives_equal_gradients(
    classifier: Callable[..., Any], batch: Any, randomized: Any
) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = randomized(adapted(classifier("bert"), "bert")).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.activation_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(4)
        model(**batch("bert")).logits.square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    plain, recomputed = gradients(False), gradients(True)
    assert all(torch.equal(plain[n], recomputed[n]) for n in plain)
    assert plain.keys() == recomputed.keys()


@pytest.mark.parametrize("four_bit", [False, True], ids=["int8", "nf4"])
def test_quantized_base(tmp_path: Path, logits: Logits, four_bit: bool) -> None:
    pytest.importorskip("bitsandbytes", reason="the quantization extra is not installed")
    from transformers import BertConfig, BertForSequenceClassification, BitsAndBytesConfig

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    BertForSequenceClassification(BertConfig(vocab_size=50, initializer_range=0.2, **sizes)).save_pretrained(tmp_path)
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if four_bit else {"load_in_8bit": True}
    base = BertForSequenceClassification.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(llm_int8_skip_modules=["classifier"], **options)
    ).train()  # bitsandbytes 0.50 repacks 4-bit weights at the first evaluation; then nothing can train
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    inputs = {"input_ids": torch.tensor([[7, 8, 9, 1]])}
    before = base(**inputs).logits.detach()
    model = adapted(base, "bert").train()
    assert torch.equal(model(**inputs).logits, before)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trainable} == {torch.float32}
    model(**inputs).logits[0, 0].backward()
    torch.optim.SGD(trainable, lr=0.1).step()
    after = model(**inputs).logits.detach()
    assert not torch.equal(after, before)
    model.merge_adapter()
    torch.testing.assert_close(model(**inputs).logits, after, rtol=1e-3, atol=1e-4)


def test_query_and_intermediate_biases(classifier: Callable[..., Any]) -> None:
    wanted = [
        f"bert.encoder.layer.{layer}.{end}"
        for layer in (0, 1)
        for end in ("attention.self.query", "intermediate.dense")
    ]
    assert find_biases(classifier("bert"), targets="query_and_intermediate", skip=["classifier"]) == wanted
    model = adapted(classifier("roberta"), "roberta", targets="query_and_intermediate")
    assert model.get_nb_trainable_parameters()[0] == 2 * (32 + 64) + HEAD_WEIGHTS["roberta"]
    with pytest.raises(
        CapabilityError, match=r"GPT2.*does not have a bias of its own in every query.*use targets: all"
    ):
        find_biases(classifier("gpt2"), targets="query_and_intermediate")


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_models_without_biases_are_refused(classifier: Callable[..., Any], name: str) -> None:
    with pytest.raises(CapabilityError, match=r"has no biases outside its head.*choose method lora"):
        find_biases(classifier(name), skip=["classification_head"])


def test_output_embeddings_are_left_alone() -> None:
    from transformers import GPTJConfig, GPTJForCausalLM

    with torch.device("meta"):
        model = GPTJForCausalLM(GPTJConfig(n_embd=32, n_layer=1, n_head=2, n_inner=64, vocab_size=50, rotary_dim=8))
    assert model.lm_head.bias is not None
    # GPT-J has no biases in attention
    assert find_biases(model) == [
        "transformer.h.0.ln_1",
        "transformer.h.0.mlp.fc_in",
        "transformer.h.0.mlp.fc_out",
        "transformer.ln_f",
    ]


def test_new_tokens_train_beside(classifier: Callable[..., Any], tmp_path: Path, logits: Logits) -> None:
    from peft import PeftModel

    model = adapted(classifier("gpt2"), "gpt2", trainable_token_indices=[3, 5])
    (tokens,) = (p for n, p in model.named_parameters() if p.requires_grad and "trainable_tokens" in n)
    assert tuple(tokens.shape) == (2, 32)
    with torch.no_grad():
        tokens.fill_(0.7)
    inputs = {"input_ids": torch.tensor([[1, 3, 5]])}
    expected = logits(model, inputs)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(classifier("gpt2", seed=4), tmp_path), inputs), expected)
    assert torch.equal(logits(model.merge_and_unload(), inputs), expected)
    assert not torch.equal(expected, logits(classifier("gpt2"), inputs))


def test_targets_without_a_bias_are_refused(classifier: Callable[..., Any]) -> None:
    with pytest.raises(CapabilityError, match="a target is Embedding without one; leave target_modules out"):
        adapted(classifier("bert"), "bert", target_modules=["word_embeddings"])
    with pytest.raises(CapabilityError, match="one of all, query_and_intermediate, not 'queries'"):
        BitFitConfig(targets="queries")
