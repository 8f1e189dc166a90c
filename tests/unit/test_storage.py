"""How base weights are held: bits, compute type, and checkpoints that are quantized already."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.errors import CapabilityError
from peftkit.models import LoadedModel, load_model, quiet_libraries, storage_of
from peftkit.quantization import quantizers
from peftkit.recipe import ModelSpec, Recipe
from peftkit.storage import Storage, StoredQuantization, base_bits, check_readable, compute_dtype, parameter_count
from peftkit.tasks import Head, tasks

STORED: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4),
    "three bits": ({"quant_method": "gptq", "bits": 3}, 4),
    "gptq in 8 bits": ({"quant_method": "gptq", "bits": 8}, 8),
    "awq": ({"quant_method": "awq", "w_bit": 4, "zero_point": True}, 4),
    "hqq": ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 2, "group_size": 64}}}, 4),
    "bitsandbytes nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, 4),
    "bitsandbytes int8, of old": ({"load_in_8bit": True}, 8),
    "fp8": ({"quant_method": "fp8"}, 8),
    "mxfp4": ({"quant_method": "mxfp4"}, 4),
}


@pytest.fixture
def head() -> Head:
    return tasks.build({"name": "sequence_classification", "labels": ["negative", "positive"]}).head()


@pytest.fixture
def checkpoint_stored_as(tiny_bert: Path, tmp_path: Path) -> Callable[[Mapping[str, Any]], Path]:
    """Function from a `quantization_config` to a folder whose weights are none: reading them would fail."""

    def folder(settings: Mapping[str, Any]) -> Path:
        for path in tiny_bert.iterdir():
            if path.suffix != ".safetensors":
                shutil.copy(path, tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"nothing")
        config = json.loads((tiny_bert / "config.json").read_text("utf-8"))
        (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}), "utf-8")
        return tmp_path

    return folder


def recipe_for(model: Path, **parts: Any) -> Recipe:
    values = {"model": str(model), "task": "sequence_classification", "data": {"name": "files", "train": "x.csv"}}
    return Recipe.from_values({**values, "method": "lora", **parts}, origin="test")


@pytest.mark.parametrize(
    ("device", "computes_bf16", "expected"),
    [
        ("cpu", True, torch.float32),
        ("mps", True, torch.float32),
        ("cuda", True, torch.bfloat16),
        ("cuda:1", True, torch.bfloat16),
        ("cuda", False, torch.float16),
    ],
)
def test_compute_type_is_what_the_device_computes(
    device: str, computes_bf16: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: computes_bf16)
    assert compute_dtype(device) == expected


@pytest.mark.parametrize(
    ("storage", "bits"),
    [
        (Storage(), 32),
        (Storage(torch.bfloat16), 16),
        (Storage(torch.float16), 16),
        (Storage(quantizer=quantizers.build("int8")), 8),
        (Storage(torch.bfloat16, quantizers.build("nf4")), 4),
        (Storage(quantizer=quantizers.build("fp4")), 4),
    ],
)
def test_bits_of_an_unquantized_checkpoint(tiny_bert: Path, storage: Storage, bits: int) -> None:
    assert base_bits(ModelSpec(id=str(tiny_bert)), storage) == bits


@pytest.mark.parametrize("kind", STORED)
def test_bits_of_a_quantized_checkpoint(checkpoint_stored_as: Callable[..., Path], kind: str) -> None:
    settings, bits = STORED[kind]
    assert base_bits(ModelSpec(id=str(checkpoint_stored_as(settings))), Storage(torch.float16)) == bits


@pytest.mark.parametrize(
    ("method", "needs"),
    [
        ("gptq", "needs optimum and gptqmodel; install it with  pip install optimum gptqmodel  or "),
        ("awq", "needs gptqmodel; install it with  pip install gptqmodel  or "),
        ("hqq", "needs hqq; install it with  pip install hqq  or "),
        ("bitsandbytes", "needs bitsandbytes; install it with  pip install 'peftkit[quantization]'  or "),
    ],
)
def test_absent_library_is_named_before_weights_are_loaded(
    checkpoint_stored_as: Callable[..., Path], head: Head, method: str, needs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    folder = checkpoint_stored_as({"quant_method": method, "bits": 4, "load_in_8bit": method == "bitsandbytes"})
    with pytest.raises(CapabilityError) as refusal:
        storage_of(recipe_for(folder), head, dtype=torch.float32)
    assert str(refusal.value) == (
        f"the weights of '{folder}' are stored as {method}, which {needs}choose an unquantized base and  "
        "quantization: nf4"
    )


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("squeezed", "which cannot be loaded here (Unknown quantization type, got squeezed"),
        ("higgs", "which cannot be loaded here (HIGGS quantization is only supported on GPU"),
        ("bitnet", "through which transformers passes no gradients; choose an unquantized base"),
    ],
)
def test_what_transformers_cannot_read_or_train_is_refused(method: str, reason: str) -> None:
    stored = StoredQuantization(method, {"quant_method": method, "bits": 4})
    with pytest.raises(CapabilityError) as refusal:
        check_readable(ModelSpec(id="org/model"), stored, device="cpu")
    assert reason in str(refusal.value)


def test_quantizing_twice_is_refused(checkpoint_stored_as: Callable[..., Path], head: Head) -> None:
    folder = checkpoint_stored_as({"quant_method": "gptq", "bits": 4})
    with pytest.raises(CapabilityError) as refusal:
        storage_of(recipe_for(folder, quantization="nf4"), head, dtype=torch.float32)
    assert str(refusal.value) == f"'{folder}' is quantized already (gptq); remove  quantization  from the recipe"


def test_storage_of_a_recipe(tiny_bert: Path, head: Head) -> None:
    assert storage_of(recipe_for(tiny_bert), head, dtype=torch.bfloat16, device="cpu") == Storage(
        torch.bfloat16, device="cpu"
    )
    nf4 = storage_of(recipe_for(tiny_bert, quantization="nf4"), head, dtype=torch.float32, device="cpu")
    assert nf4 == Storage(torch.float32, quantizers.build("nf4"), torch.float32, (), "cpu")


def test_modules_that_the_method_retrains_are_not_quantized(tiny_bert: Path, head: Head) -> None:
    recipe = recipe_for(tiny_bert, quantization="nf4", method={"name": "last_layers", "layers": 1})
    storage = storage_of(recipe, head, dtype=torch.float32)
    assert "bert.encoder.layer.1" in storage.keep
    model = load_model(recipe.model, head, storage=storage).model
    assert type(model.get_submodule("bert.encoder.layer.1.output.dense")) is torch.nn.Linear
    assert type(model.get_submodule("bert.encoder.layer.0.output.dense")).__name__ == "Linear4bit"


@pytest.mark.parametrize("name", ["nf4", "int8"])
@pytest.mark.parametrize("model", ["bert", "llama"])
def test_saved_quantized_checkpoint_loads_with_a_new_head(
    checkpoint: Callable[[str], Path], head: Head, tmp_path: Path, model: str, name: str
) -> None:
    """Its weights are those that quantizing gives; what it lacks is no weight of it."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    from peftkit.methods import TuningContext, methods

    auto_class = AutoModelForMaskedLM if model == "bert" else AutoModelForCausalLM
    config = quantizers.build(name).config(compute_dtype=torch.float32, keep=["cls", "lm_head"])
    with quiet_libraries():
        saved = auto_class.from_pretrained(checkpoint(model), quantization_config=config, dtype=torch.float32)
        saved.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(checkpoint(model)).save_pretrained(tmp_path)
    spec = ModelSpec(id=str(tmp_path))
    base: LoadedModel = load_model(spec, head, storage=Storage())
    assert base.head_modules == (("classifier", "bert.pooler.dense") if model == "bert" else ("score",))
    fresh = load_model(
        ModelSpec(id=str(checkpoint(model))), head, storage=Storage(quantizer=quantizers.build(name))
    ).model.state_dict()
    codes = {key: value for key, value in base.model.state_dict().items() if value.dtype in (torch.uint8, torch.int8)}
    assert len(codes) >= 12
    assert all(torch.equal(value, fresh[key]) for key, value in codes.items())
    context = TuningContext("SEQ_CLS", base.head_modules, 10, base_bits=base_bits(spec, Storage()))
    tuned = methods.build("lora").apply(base.model, context)
    tuned(**base.tokenizer(["kind"], return_tensors="pt", return_token_type_ids=False)).logits.sum().backward()
    assert all(weight.grad is not None for weight in tuned.parameters() if weight.requires_grad)


def test_weights_of_packed_parameters_are_counted(tiny_bert: Path, head: Head) -> None:
    spec = ModelSpec(id=str(tiny_bert))
    plain = load_model(spec, head, storage=Storage()).model
    packed = load_model(spec, head, storage=Storage(quantizer=quantizers.build("nf4"))).model
    assert sum(weight.numel() for weight in packed.parameters()) < plain.num_parameters()
    assert sum(map(parameter_count, packed.parameters())) == plain.num_parameters()
