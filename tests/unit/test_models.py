"""Base models: skeletons without weights, float32 masters, and the logits that training and prediction share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.errors import CapabilityError, RunError
from peftkit.methods import TuningContext, methods
from peftkit.models import (
    Storage,
    load_model,
    load_tuned,
    make_room,
    merge_adapter,
    on_device,
    save_weights,
    skeleton,
    to_float32_masters,
)
from peftkit.outputs import logits_of
from peftkit.quantization import quantizers
from peftkit.recipe import ModelSpec
from peftkit.tasks import Head, Task, tasks

Checkpoint = Callable[[str], Path]
NAMES = ("bert", "distilbert", "roberta", "gpt2", "llama", "t5")
TEXTS = ["The soup was lovely.", "kind"]


@pytest.fixture
def task() -> Task:
    return tasks.build({"name": "sequence_classification", "labels": ["negative", "neutral", "positive"]})


@pytest.fixture
def head(task: Task) -> Head:
    return task.head()


def lora(base: Any) -> Any:
    return methods.build("lora").apply(base.model, TuningContext("SEQ_CLS", base.head_modules, 10))


@pytest.mark.parametrize("name", NAMES)
def test_skeleton_is_the_model_without_weights(checkpoint: Checkpoint, head: Head, name: str) -> None:
    spec = ModelSpec(id=str(checkpoint(name)))
    bare, loaded = skeleton(spec, head), load_model(spec, head, storage=Storage())
    assert {weight.device.type for weight in bare.model.parameters()} == {"meta"}
    shapes = {name: weight.shape for name, weight in loaded.model.named_parameters()}
    assert {name: weight.shape for name, weight in bare.model.named_parameters()} == shapes
    assert bare.head_modules == loaded.head_modules
    assert bare.model.config.num_labels == 3
    assert bare.tokenizer.pad_token_id is not None


def test_skeleton_reads_no_weights_and_is_fast(tiny_bert: Path, head: Head, tmp_path: Path) -> None:
    config = json.loads((tiny_bert / "config.json").read_text("utf-8"))
    large = {"hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 24, "num_attention_heads": 32}
    (tmp_path / "config.json").write_text(json.dumps(config | large), "utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    for path in tiny_bert.glob("token*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    began = time.process_time()
    bare = skeleton(ModelSpec(id=str(tmp_path)), head)
    assert time.process_time() - began < 1.0
    assert bare.model.num_parameters() > 4_800_000_000


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_trains_is_float32_and_the_base_is_not(tiny_llama: Path, head: Head, dtype: torch.dtype) -> None:
    base = load_model(ModelSpec(id=str(tiny_llama)), head, storage=Storage(dtype))
    model = to_float32_masters(lora(base))
    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for weight in model.parameters():
        dtypes[weight.requires_grad].add(weight.dtype)
    assert dtypes[True] == {torch.float32}
    assert dtype in dtypes[False]


def test_masters_keep_their_values_and_stay_the_same_parameters(tiny_bert: Path, head: Head) -> None:
    model = load_model(ModelSpec(id=str(tiny_bert)), head, storage=Storage(torch.bfloat16)).model
    model.requires_grad_(False)
    weight = model.bert.pooler.dense.weight.requires_grad_(True)
    before = weight.detach().clone()
    assert to_float32_masters(model) is model
    assert model.bert.pooler.dense.weight is weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight.detach(), before.float())
    assert model.bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_float32_on_the_cpu_and_leave_no_graph(
    tiny_bert: Path, task: Task, head: Head, dtype: torch.dtype
) -> None:
    base = load_model(ModelSpec(id=str(tiny_bert)), head, storage=Storage(dtype))
    model = to_float32_masters(lora(base)).eval()
    batch = base.tokenizer(TEXTS, padding=True, return_tensors="pt")
    logits = logits_of(model, batch, task=task)
    assert (logits.shape, logits.dtype, logits.device.type, logits.requires_grad) == (
        (2, 3),
        torch.float32,
        "cpu",
        False,
    )
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert torch.equal(logits, model(**batch).logits.float())


def test_architecture_without_such_a_head_is_refused(tiny_t5: Path) -> None:
    head = Head("AutoModelForMultipleChoice", {}, None, is_new=True)
    with pytest.raises(CapabilityError, match="has no architecture for AutoModelForMultipleChoice; choose a base"):
        load_model(ModelSpec(id=str(tiny_t5)), head, storage=Storage())


def test_folder_without_weights_of_a_run_is_refused(tiny_bert: Path, head: Head, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds neither adapter/ nor model/; run the recipe again"):
        load_tuned(tmp_path, ModelSpec(id=str(tiny_bert)), head, storage=Storage())


@pytest.mark.parametrize("storage", [Storage(), Storage(torch.bfloat16), Storage(quantizer=quantizers.build("nf4"))])
def test_saved_adapter_loads_bit_equal_on_its_storage(
    tiny_bert: Path, task: Task, head: Head, tmp_path: Path, storage: Storage
) -> None:
    spec = ModelSpec(id=str(tiny_bert))
    base = load_model(spec, head, storage=storage)
    model = to_float32_masters(lora(base)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.3)
    save_weights(model, base.tokenizer, tmp_path, spec=spec)
    again = load_tuned(tmp_path, spec, head, storage=storage)
    batch = base.tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(logits_of(again.model, batch, task=task), logits_of(model, batch, task=task))
    assert not again.model.training


def test_merged_adapter_leaves_no_trace_of_peft(tiny_roberta: Path, task: Task, head: Head) -> None:
    base = load_model(ModelSpec(id=str(tiny_roberta)), head, storage=Storage())
    model = lora(base).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.2)
    batch = base.tokenizer(TEXTS, padding=True, return_tensors="pt")
    before = logits_of(model, batch, task=task)
    merged = merge_adapter(model)
    assert type(merged).__name__ == "RobertaForSequenceClassification"
    assert not any("lora" in name or "modules_to_save" in name for name, _ in merged.named_modules())
    assert torch.allclose(logits_of(merged, batch, task=task), before, atol=1e-5)


@pytest.mark.parametrize("quantization", [None, "nf4", "int8"])
def test_model_that_is_on_its_device_stays(tiny_bert: Path, head: Head, quantization: str | None) -> None:
    quantizer = None if quantization is None else quantizers.build(quantization)
    model = load_model(ModelSpec(id=str(tiny_bert)), head, storage=Storage(quantizer=quantizer, device="cpu")).model
    assert on_device(model, "cpu") is model
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}


def test_room_is_made_for_new_tokens_only(tiny_bert: Path, head: Head) -> None:
    base = load_model(ModelSpec(id=str(tiny_bert)), head, storage=Storage())
    rows = base.model.get_input_embeddings().num_embeddings
    make_room(base.model, base.tokenizer)
    assert base.model.get_input_embeddings().num_embeddings == rows
    base.tokenizer.add_tokens(["<order>", "</order>"])
    state = torch.get_rng_state()
    make_room(base.model, base.tokenizer)
    assert base.model.get_input_embeddings().num_embeddings == len(base.tokenizer) == rows + 2
    assert torch.equal(torch.get_rng_state(), state), "later draws do not depend on it"
