"""Tuning whole modules of the base: which train, that plain peft loads them, and that the base is never changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.layers.depth import above_stack, depth_groups
from peftkit.methods import TuningContext, methods
from peftkit.models import Storage, load_model, merge_adapter, skeleton, to_float32_masters
from peftkit.quantization import quantizers
from peftkit.recipe import ModelSpec
from peftkit.tasks import Head

CLASSIFIER = Head("AutoModelForSequenceClassification", {"num_labels": 3}, "SEQ_CLS")
CAUSAL = Head("AutoModelForCausalLM", {}, "CAUSAL_LM", is_new=False)
SEQ2SEQ = Head("AutoModelForSeq2SeqLM", {}, "SEQ_2_SEQ_LM", is_new=False)
CASES = [
    ("bert", CLASSIFIER),
    ("roberta", CLASSIFIER),
    ("distilbert", CLASSIFIER),
    ("gpt2", CLASSIFIER),
    ("gpt2", CAUSAL),
    ("llama", CAUSAL),
    ("t5", SEQ2SEQ),
]
D, FF, LABELS = 32, 64, 3  # width, inner width, classes of the tiny models
DENSE, NORM = D * D + D, 2 * D
BERT_BLOCK = 4 * DENSE + D * FF + FF + FF * D + D + 2 * NORM
GPT2_BLOCK = 3 * D * D + 3 * D + DENSE + D * FF + FF + FF * D + D + 2 * NORM
LLAMA_BLOCK = 2 * D * D + 2 * D * (D // 2) + 3 * D * FF + 2 * D  # half as many key and value heads; no biases
T5_PART = 4 * D * D + D  # one attention with its norm
T5_FORWARD = 2 * D * FF + D
CLASSIFICATION = D * LABELS + LABELS
HEADS = {"bert": CLASSIFICATION, "roberta": DENSE + CLASSIFICATION, "distilbert": DENSE + CLASSIFICATION}
HEADS |= {"gpt2": D * LABELS, "llama": 0, "t5": 0}
NORMS = {"bert": 5 * NORM, "roberta": 5 * NORM, "distilbert": 5 * NORM, "gpt2": 5 * NORM, "llama": 5 * D}
NORMS |= {"t5": (2 * 2 + 1 + 2 * 3 + 1) * D}
TOP_BLOCK = {"bert": BERT_BLOCK + DENSE, "roberta": BERT_BLOCK, "distilbert": BERT_BLOCK, "gpt2": GPT2_BLOCK + NORM}
TOP_BLOCK |= {"llama": LLAMA_BLOCK + D, "t5": 3 * T5_PART + 2 * T5_FORWARD + 2 * D}  # BERT: with the pooler
COUNTS = {"head_only": {}, "layer_norm": NORMS, "last_layers": TOP_BLOCK}
OPTIONS: dict[str, dict[str, Any]] = {"last_layers": {"layers": 1}}
ALL = [
    pytest.param(method, name, head, id=f"{method}-{name}-{head.peft_task_type}")
    for method in COUNTS
    for name, head in CASES
    if method != "head_only" or head.is_new
]


@dataclass(frozen=True)
class Tuned:
    model: Any
    base_logits: torch.Tensor
    inputs: dict[str, torch.Tensor]

    def logits(self) -> torch.Tensor:
        return logits(self.model, self.inputs)


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(**inputs).logits
    return found


def method_of(name: str, **options: Any) -> Any:
    return methods.build({"name": name, **OPTIONS.get(name, {}), **options})


def trained(method: Any, folder: Path, head: Head, *, quantizer: str | None = None) -> Tuned:
    """The method on a checkpoint, after three steps that move every trainable weight by a gradient."""
    spec = ModelSpec(id=str(folder))
    bare = skeleton(spec, head)
    keep = method.full_precision_modules(bare.model, head_modules=bare.head_modules)
    storage = Storage(quantizer=quantizers.build(quantizer) if quantizer else None, keep=keep)
    torch.manual_seed(0)
    loaded = load_model(spec, head, storage=storage)
    bits = storage.quantizer.bits if storage.quantizer else 32
    context = TuningContext(head.peft_task_type, loaded.head_modules, 10, base_bits=bits)
    assert method.problem(bare.model, context) is None
    inputs = {"input_ids": torch.randint(5, 60, (2, 7), generator=torch.Generator().manual_seed(3))}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if head is SEQ2SEQ:
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :4]
    before = logits(loaded.model, inputs)
    frozen = {name: weight.detach().clone() for name, weight in loaded.model.state_dict().items()}
    model = to_float32_masters(method.apply(loaded.model, context))
    start = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    take_steps(model, inputs)
    moved = {name for name, weight in model.named_parameters() if name in start and not weight.equal(start[name])}
    assert moved == set(start)
    untouched = {
        name.removeprefix("base_model.model.").replace(".original_module.", "."): weight
        for name, weight in model.state_dict().items()
        if ".modules_to_save." not in name
    }
    assert untouched.keys() == frozen.keys()
    assert all(weight.equal(untouched[name]) for name, weight in frozen.items())
    return Tuned(model, before, inputs)


def take_steps(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=0.01)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        scores = model(**inputs).logits
        targets = torch.arange(scores.shape[:-1].numel()) % scores.shape[-1]
        torch.nn.functional.cross_entropy(scores.flatten(0, -2), targets).backward()
        optimizer.step()


@pytest.mark.parametrize(("method", "name", "head"), ALL)
def test_adapter_is_what_it_says(
    checkpoint: Callable[[str], Path], tmp_path: Path, method: str, name: str, head: Head
) -> None:
    """Count by formula; base bit-equal; disabled == base; saved == loaded by plain peft; merged == unmerged."""
    from peft import PeftModel

    tuned = trained(method_of(method), checkpoint(name), head)
    trainable = sum(weight.numel() for weight in tuned.model.parameters() if weight.requires_grad)
    assert trainable == COUNTS[method].get(name, 0) + (HEADS[name] if head.is_new else 0)
    after = tuned.logits()
    assert (after - tuned.base_logits).abs().max() > 1e-2
    with tuned.model.disable_adapter():
        assert tuned.logits().equal(tuned.base_logits)
    tuned.model.save_pretrained(tmp_path)
    torch.manual_seed(0)  # the head, which the base has not, starts as it did
    fresh = load_model(ModelSpec(id=str(checkpoint(name))), head, storage=Storage()).model
    assert logits(PeftModel.from_pretrained(fresh, tmp_path), tuned.inputs).equal(after)
    assert methods.get(method).mergeable
    assert logits(merge_adapter(tuned.model), tuned.inputs).equal(after)


@pytest.mark.parametrize("quantizer", ["nf4", "int8"])
@pytest.mark.parametrize(
    ("method", "name", "head"), [case for case in ALL if case.values[1] in ("bert", "gpt2", "llama", "t5")]
)
def test_quantized_base_is_trained_saved_and_loaded(
    checkpoint: Callable[[str], Path], tmp_path: Path, method: str, name: str, head: Head, quantizer: str
) -> None:
    from peft import PeftModel

    pytest.importorskip("bitsandbytes", reason="quantized bases need the extra  quantization")
    options = OPTIONS.get(method, {})
    built = methods.build({"name": method, **options})
    tuned = trained(built, checkpoint(name), head, quantizer=quantizer)
    quantized = [part for part in tuned.model.modules() if type(part).__name__ in ("Linear4bit", "Linear8bitLt")]
    assert quantized, "nothing was quantized"
    assert {weight.dtype for weight in tuned.model.parameters() if weight.requires_grad} == {torch.float32}
    after = tuned.logits()
    tuned.model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    spec = ModelSpec(id=str(checkpoint(name)))
    bare = skeleton(spec, head)
    keep = built.full_precision_modules(bare.model, head_modules=bare.head_modules)
    fresh = load_model(spec, head, storage=Storage(quantizer=quantizers.build(quantizer), keep=keep)).model
    assert logits(PeftModel.from_pretrained(fresh, tmp_path), tuned.inputs).equal(after)


def bare_model(folder: Path, head: Head) -> tuple[Any, TuningContext]:
    loaded = skeleton(ModelSpec(id=str(folder)), head)
    return loaded.model, TuningContext(head.peft_task_type, loaded.head_modules, 10)


def test_head_only_says_that_a_language_model_has_no_new_head(tiny_llama: Path) -> None:
    model, context = bare_model(tiny_llama, CAUSAL)
    assert method_of("head_only").problem(model, context) == (
        "method 'head_only' trains the new head only, and LlamaForCausalLM gets none for this task; "
        "use last_layers or lora"
    )


def test_more_layers_than_there_are_is_refused(tiny_bert: Path) -> None:
    model, context = bare_model(tiny_bert, CLASSIFIER)
    assert method_of("last_layers", layers=2).problem(model, context) is None
    assert method_of("last_layers", layers=5).problem(model, context) == (
        "method.layers is 5, but 'bert.encoder.layer' of BertForSequenceClassification has only 2 blocks; use at most 2"
    )


@pytest.mark.parametrize(
    ("name", "head", "sharing"),
    [
        ("gpt2", CAUSAL, "transformer.wte and lm_head"),
        ("t5", SEQ2SEQ, "shared and encoder.embed_tokens and decoder.embed_tokens and lm_head"),
        ("t5", CLASSIFIER, "transformer.shared and transformer.encoder.embed_tokens and transformer.decoder.embed"),
    ],
)
def test_shared_embeddings_are_refused(checkpoint: Callable[[str], Path], name: str, head: Head, sharing: str) -> None:
    model, context = bare_model(checkpoint(name), head)
    problem = method_of("last_layers", embeddings=True).problem(model, context)
    assert f"are shared by {sharing}" in str(problem)
    assert "use method full" in str(problem)


@pytest.mark.parametrize(("name", "head"), [("bert", CLASSIFIER), ("gpt2", CLASSIFIER), ("llama", CAUSAL)])
def test_embeddings_train_where_they_are_the_models_own(
    checkpoint: Callable[[str], Path], tmp_path: Path, name: str, head: Head
) -> None:
    from peft import PeftModel

    tuned = trained(method_of("last_layers", embeddings=True), checkpoint(name), head)
    vocabulary = tuned.model.config.vocab_size
    trainable = sum(weight.numel() for weight in tuned.model.parameters() if weight.requires_grad)
    assert trainable == TOP_BLOCK[name] + vocabulary * D + (HEADS[name] if head.is_new else 0)
    after = tuned.logits()
    tuned.model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    fresh = load_model(ModelSpec(id=str(checkpoint(name))), head, storage=Storage()).model
    assert logits(PeftModel.from_pretrained(fresh, tmp_path), tuned.inputs).equal(after)


def test_decoder_does_not_count_as_what_lies_above_the_encoder(tiny_t5: Path) -> None:
    model, context = bare_model(tiny_t5, CLASSIFIER)
    assert above_stack(model, "transformer.encoder.block", heads=False) == ["transformer.encoder.final_layer_norm"]
    assert above_stack(model, "transformer.encoder.block", heads=True)[1:] == ["classification_head"]
    modules = method_of("last_layers").full_precision_modules(model, head_modules=context.head_modules)
    assert set(modules) == {
        "transformer.encoder.block.1",
        "transformer.encoder.final_layer_norm",
        "transformer.decoder.block.1",
        "transformer.decoder.final_layer_norm",
    }


def test_depth_puts_a_tied_output_layer_with_the_embeddings(tiny_gpt2: Path, tiny_llama: Path) -> None:
    top, last, first, below = depth_groups(bare_model(tiny_gpt2, CAUSAL)[0])
    assert top == ["transformer.ln_f.weight", "transformer.ln_f.bias"]
    assert {name.rpartition(".h.")[2][0] for name in last} == {"1"}
    assert {name.rpartition(".h.")[2][0] for name in first} == {"0"}
    assert below == ["transformer.wte.weight", "transformer.wpe.weight"]
    untied = depth_groups(bare_model(tiny_llama, CAUSAL)[0])
    assert untied[0] == ["model.norm.weight", "lm_head.weight"]
    assert untied[-1] == ["model.embed_tokens.weight"]


def test_norms_that_are_named_otherwise_or_lie_in_the_head_are_left_alone() -> None:
    from peftkit.methods.layer_norm import norms

    class OddRMSNorm(torch.nn.RMSNorm):
        pass

    plain = torch.nn.LayerNorm(4, elementwise_affine=False)
    parts = {"odd": OddRMSNorm(4), "plain": plain, "linear": torch.nn.Linear(4, 4)}
    model = torch.nn.ModuleDict({**parts, "head": torch.nn.Sequential(torch.nn.LayerNorm(4))})
    assert norms(model, ["head"]) == ["odd"]
    assert norms(model, ["he"]) == ["odd", "head.0"]


def test_model_without_norms_or_blocks_is_refused() -> None:
    from transformers import PretrainedConfig, PreTrainedModel

    class Flat(PreTrainedModel):
        config_class = PretrainedConfig

        def __init__(self) -> None:
            super().__init__(PretrainedConfig())
            self.layer = torch.nn.Linear(2, 2)

    context = TuningContext("SEQ_CLS", ("layer",), 10)
    assert "finds no normalisation layer in Flat" in str(method_of("layer_norm").problem(Flat(), context))
    assert "finds no repeated blocks in Flat" in str(method_of("last_layers").problem(Flat(), context))
    assert "finds no repeated blocks in Flat" in str(method_of("gradual_unfreezing").problem(Flat(), context))


def test_modules_of_a_stack_inside_each_other_are_trained_once(tiny_bert: Path) -> None:
    """`method: [last_layers, layer_norm]`: norms of the top block lie inside a module that trains as a whole."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=LABELS)
    norms = ("bert.encoder.layer.1.output.LayerNorm", "bert.embeddings.LayerNorm")
    context = TuningContext("SEQ_CLS", ("classifier",), 10, extra_modules=norms)
    tuned = method_of("last_layers").apply(model, context)
    trainable = sum(weight.numel() for weight in tuned.parameters() if weight.requires_grad)
    assert trainable == TOP_BLOCK["bert"] + NORM + CLASSIFICATION
