"""What every tuning method says of itself; what it does is held by tests/contracts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.errors import UnknownComponentError
from peftkit.methods import TuningContext, TuningMethod, methods

CONTEXT = TuningContext(peft_task_type="SEQ_CLS", head_modules=("classifier",), total_steps=20)

REQUIRED: dict[str, dict[str, Any]] = {
    "peft": {"type": "lily"},
    "trainable_tokens": {"tokens": ["film"]},
    "stack": {"methods": ["lora", "layer_norm"]},
}


def classifier(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


@pytest.fixture(params=methods.loaded_names())
def method(request: pytest.FixtureRequest) -> TuningMethod:
    return methods.build({"name": request.param, **REQUIRED.get(request.param, {})})


def test_names_are_known() -> None:
    assert {"full", "lora"} <= set(methods.names())


def test_options_round_trip(method: TuningMethod) -> None:
    spec = method.spec()
    assert spec["name"] == method.name
    assert methods.build(spec) == method
    assert methods.build(spec).spec() == spec


def test_every_option_is_described(method: TuningMethod) -> None:
    assert all(field.description for field in type(method).model_fields.values())
    assert type(method).__doc__


def test_unknown_option_is_refused(method: TuningMethod) -> None:
    with pytest.raises(ValueError, match="no_such_option"):
        methods.build({"name": method.name, "no_such_option": 1})


def test_learning_rate_is_sane(method: TuningMethod) -> None:
    assert 1e-6 < method.default_learning_rate < 1


def test_full_trains_everything(tiny_bert: Path) -> None:
    model = classifier(tiny_bert).requires_grad_(False)
    tuned = methods.build("full").apply(model, CONTEXT)
    assert tuned is model
    assert all(weight.requires_grad for weight in tuned.parameters())


def test_only_full_tuning_is_neither_merged_nor_quantized() -> None:
    assert methods.get("full").trains_base_weights
    assert not methods.get("lora").trains_base_weights
    assert not methods.get("full").mergeable


def test_methods_need_no_callbacks_by_default() -> None:
    assert list(methods.build("lora").callbacks()) == []


def test_unknown_method_suggests_the_nearest() -> None:
    with pytest.raises(UnknownComponentError, match="unknown tuning method 'lor'; did you mean 'lora'"):
        methods.build("lor")
