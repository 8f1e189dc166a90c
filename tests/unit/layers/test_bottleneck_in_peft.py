"""Bottleneck adapters as a citizen of peft: saved, loaded, switched, deleted, quantized."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from peftkit.errors import CapabilityError
from peftkit.layers.bottleneck import BottleneckConfig, BottleneckLayer

STYLES = ("houlsby", "pfeiffer", "parallel", "scaled_parallel")
HEADS = {
    "bert": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "roberta": ["classifier"],
    "gpt2": ["score"],
    "llama": ["score"],
    "t5": ["classification_head"],
}
HIDDEN, WIDTH = 32, 5
Logits = Callable[[Any, Mapping[str, Tensor]], Tensor]


def adapted(model: Any, name: str, *, adapter: str = "default", **options: Any) -> Any:
    from peft import get_peft_model

    config = BottleneckConfig(task_type="SEQ_CLS", modules_to_save=[*HEADS[name]], **{"width": WIDTH, **options})
    return get_peft_model(model, config, adapter_name=adapter).eval()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", HEADS)
def test_saved_adapter_reloads_with_bit_equal_logits(
    classifier: Callable[..., Any], batch: Any, randomized: Any, logits: Logits, tmp_path: Path, name: str, style: str
) -> None:
    from peft import PeftModel

    model = randomized(adapted(classifier(name, seed=1), name, style=style, non_linearity="tanh", dropout=0.3))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(classifier(name, seed=2), tmp_path)  # another seed: another head
    assert torch.equal(logits(again, batch(name)), logits(model, batch(name)))
    without_storage = PeftModel.from_pretrained(classifier(name, seed=2), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(without_storage, batch(name)), logits(model, batch(name)))


def test_folder_names_its_places_and_is_the_same_each_time(classifier: Callable[..., Any], tmp_path: Path) -> None:
    import json

    for run in ("first", "second"):
        adapted(classifier("bert"), "bert", style="parallel").save_pretrained(tmp_path / run)
    config = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
    assert config["target_modules"] == [f"bert.encoder.layer.{i}.output.dense" for i in (0, 1)]
    assert config["input_modules"] == {"output.dense": "intermediate.dense"}
    assert (config["style"], config["scale"], config["width"]) == ("parallel", 1.0, WIDTH)
    second = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert second == config


def test_other_loaders_of_peft_and_transformers(
    classifier: Callable[..., Any], batch: Any, randomized: Any, logits: Logits, tmp_path: Path, tiny_bert: Path
) -> None:
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification

    model = randomized(adapted(AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2), "bert"))
    model.save_pretrained(tmp_path)
    expected = logits(model, batch("bert"))
    assert torch.equal(
        logits(AutoPeftModelForSequenceClassification.from_pretrained(tmp_path), batch("bert")), expected
    )
    native = classifier("bert")
    native.load_adapter(str(tmp_path))
    assert torch.equal(logits(native, batch("bert")), expected)
    native.delete_adapter("default")
    native = classifier("bert")
    native.add_adapter(BottleneckConfig(style="houlsby", width=WIDTH))
    assert sum(isinstance(m, BottleneckLayer) for m in native.modules()) == 4


def test_more_than_twenty_places_are_told_apart(batch: Any, randomized: Any, logits: Logits, tmp_path: Path) -> None:
    """From 20 targets on, peft shortens their names itself."""
    from peft import PeftModel
    from transformers import BertConfig, BertForSequenceClassification

    def deep() -> Any:
        torch.manual_seed(3)
        sizes = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 12, "num_hidden_layers": 22}
        return BertForSequenceClassification(BertConfig(vocab_size=300, initializer_range=0.2, **sizes))

    model = randomized(adapted(deep(), "bert", style="parallel", width=2))
    assert sum(isinstance(m, BottleneckLayer) for m in model.modules()) == 22
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(deep(), tmp_path)
    assert torch.equal(logits(again, batch("bert")), logits(model, batch("bert")))


@pytest.mark.parametrize(("first", "second"), [("houlsby", "parallel"), ("scaled_parallel", "pfeiffer")])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_two_adapters_do_not_touch_each_other(
    classifier: Callable[..., Any], batch: Any, randomized: Any, logits: Logits, name: str, first: str, second: str
) -> None:
    alone = {
        "default": logits(randomized(adapted(classifier(name), name, style=first)), batch(name)),
        "second": logits(
            randomized(adapted(classifier(name), name, adapter="second", style=second), adapter="second", seed=6),
            batch(name),
        ),
    }
    model = randomized(adapted(classifier(name), name, style=first))
    config = BottleneckConfig(task_type="SEQ_CLS", modules_to_save=[*HEADS[name]], style=second, width=WIDTH)
    model.add_adapter("second", config)
    randomized(model, adapter="second", seed=6)
    assert torch.equal(logits(model, batch(name)), alone["default"])
    before = {n: p.detach().clone() for n, p in model.named_parameters() if ".default" in n}
    model.set_adapter("second")
    assert torch.equal(logits(model, batch(name)), alone["second"])
    assert model.get_model_status().active_adapters == ["second"]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(**batch(name)).logits.sum().backward()
    optimizer.step()
    assert not torch.equal(logits(model, batch(name)), alone["second"])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    model.set_adapter("default")
    assert torch.equal(logits(model, batch(name)), alone["default"])
    model.delete_adapter("second")
    assert torch.equal(logits(model, batch(name)), alone["default"])
    assert not [n for n, _ in model.named_parameters() if ".second." in n]
    assert {tuple(m.rules) for m in model.modules() if isinstance(m, BottleneckLayer)} <= {("default",), ()}


def test_merging_is_refused_and_does_no_harm(
    classifier: Callable[..., Any], batch: Any, randomized: Any, logits: Logits
) -> None:
    model = randomized(adapted(classifier("bert"), "bert", style="parallel"))
    expected = logits(model, batch("bert"))
    layer = next(m for m in model.modules() if isinstance(m, BottleneckLayer))
    for merge in (model.merge_and_unload, model.merge_adapter, layer.merge):
        with pytest.raises(CapabilityError, match=r"cannot be merged.*non-linearity.*keep the adapter beside the base"):
            merge()
    assert torch.equal(logits(model, batch("bert")), expected)


@pytest.mark.parametrize("style", ["houlsby", "parallel"])
@pytest.mark.parametrize(("name", "task"), [("gpt2", "CAUSAL_LM"), ("llama", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")])
def test_generation_agrees_with_one_pass_over_what_it_wrote(
    checkpoint: Callable[[str], Path], batch: Any, randomized: Any, name: str, task: str, style: str
) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    auto = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSeq2SeqLM
    base = auto.from_pretrained(checkpoint(name))
    model = randomized(get_peft_model(base, BottleneckConfig(task_type=task, style=style, width=WIDTH))).eval()
    prompt = {key: value[:1] for key, value in batch(name).items() if key in ("input_ids", "attention_mask")}
    written = model.generate(**prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    if task == "CAUSAL_LM":
        whole, start = model(input_ids=written).logits, prompt["input_ids"].shape[1]
    else:
        whole, start = model(**prompt, decoder_input_ids=written).logits, 1
    end = model.generation_config.eos_token_id
    whole[..., end if end is not None else 0] = -math.inf  # what min_new_tokens forbids
    assert whole[0, start - 1 : -1].argmax(-1).tolist() == written[0, start:].tolist()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function from architecture to a checkpoint of width 64: the narrowest that bitsandbytes packs into 4 bits."""
    import transformers

    small = {"vocab_size": 300, "initializer_range": 0.2, "pad_token_id": 0}
    usual = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    configs = {
        "bert": transformers.BertConfig(**small, **usual),
        "gpt2": transformers.GPT2Config(**small, n_embd=64, n_layer=2, n_head=2, n_inner=128),
        "llama": transformers.LlamaConfig(**small, **usual),
        "t5": transformers.T5Config(vocab_size=300, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2),
    }
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(f"wide-{name}")
            torch.manual_seed(0)
            configs[name].decoder_start_token_id = 0
            model = transformers.AutoModelForSequenceClassification.from_config(configs[name])
            model.save_pretrained(folders[name])
        return folders[name]

    return folder


@pytest.mark.parametrize("style", ["houlsby", "scaled_parallel"])
@pytest.mark.parametrize(
    "options",
    [
        {"load_in_8bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    ],
    ids=["int8", "nf4", "nf4-bf16", "fp4-double"],
)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_quantized_base(
    wide: Callable[[str], Path], logits: Logits, tmp_path: Path, name: str, options: Any, style: str
) -> None:
    pytest.importorskip("bitsandbytes", reason="the quantization extra is not installed")
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    def quantized() -> Any:
        model = AutoModelForSequenceClassification.from_pretrained(
            wide(name), quantization_config=BitsAndBytesConfig(llm_int8_skip_modules=HEADS[name], **options)
        )
        for layer in model.modules():  # bitsandbytes 0.50 repacks weights at the first evaluation; then none can train
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                layer.support_avx512bf16_for_cpu = False
        return model.eval()

    inputs = {"input_ids": torch.tensor([[7, 8, 9, 1], [12, 11, 1, 0]])}
    inputs["attention_mask"] = (inputs["input_ids"] != 0).long()
    before = logits(quantized(), inputs)
    model = adapted(quantized(), name, style=style)
    assert torch.equal(logits(model, inputs), before)
    assert {p.dtype for n, p in model.named_parameters() if "bottleneck_" in n} == {torch.float32}
    codes = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the first step moves up-projections, the second down-projections as well
        optimizer.zero_grad()
        functional.cross_entropy(model(**inputs).logits.float(), torch.tensor([0, 1])).backward()
        optimizer.step()
    assert all(torch.equal(p, codes[n]) for n, p in model.named_parameters() if n in codes)
    after = logits(model, inputs)
    assert not torch.equal(after, before)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(quantized(), tmp_path)
    assert torch.equal(logits(again, inputs), after)


def test_new_tokens_train_beside(classifier: Callable[..., Any], batch: Any, logits: Logits, tmp_path: Path) -> None:
    from peft import PeftModel

    model = adapted(classifier("llama"), "llama", style="parallel", trainable_token_indices=[3, 5])
    tokens = {n: p for n, p in model.named_parameters() if p.requires_grad and "trainable_tokens" in n}
    assert [tuple(p.shape) for p in tokens.values()] == [(2, HIDDEN)]
    with torch.no_grad():
        next(iter(tokens.values())).fill_(0.7)
    inputs = {"input_ids": torch.tensor([[1, 3, 5]])}
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(classifier("llama", seed=4), tmp_path)
    assert torch.equal(logits(again, inputs), logits(model, inputs))
    assert not torch.equal(logits(model, inputs), logits(classifier("llama"), inputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"style": "pfeifer"}, "style is one of houlsby, pfeiffer, parallel, scaled_parallel, not 'pfeifer'"),
        ({"non_linearity": "swash"}, "non_linearity is one of relu, .*, not 'swash'"),
        ({"init": "ones"}, "init is one of zero, normal, not 'ones'"),
        ({"width": 0}, "width and reduction_factor are 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CapabilityError, match=message):
        BottleneckConfig(**options)


def test_targets_that_cannot_carry_an_adapter_are_refused(classifier: Callable[..., Any]) -> None:
    with pytest.raises(CapabilityError, match="sits on linear layers, and a target is BertLayer"):
        adapted(classifier("bert"), "bert", target_modules=["layer.0"])
    with pytest.raises(
        CapabilityError, match=r"names no layer whose input belongs to 'bert.*0.*output.dense' \(it has: a\)"
    ):
        adapted(classifier("bert"), "bert", style="parallel", target_modules=["output.dense"], input_modules={"a": "b"})
    with pytest.raises(
        CapabilityError, match=r"reads the input of 'bert.*0\.wide\.dense', which BertFor.* does not have"
    ):
        adapted(
            classifier("bert"),
            "bert",
            style="parallel",
            target_modules=["0.output.dense"],
            input_modules={"output.dense": "wide.dense"},
        )
