"""What every tuning method promises; a new one is picked up by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.errors import UnknownComponentError
from peftkit.methods import TuningContext, TuningMethod, methods

CONTEXT = TuningContext(peft_task_type="SEQ_CLS", head_modules=("classifier",), total_steps=20)


def classifier(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


@pytest.fixture(params=methods.loaded_names())
def method(request: pytest.FixtureRequest) -> TuningMethod:
    return methods.build(request.param)


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


def test_head_trains_and_base_trains_only_if_declared(method: TuningMethod, tiny_bert: Path) -> None:
    base = classifier(tiny_bert)
    pristine = {name: weight.detach().clone() for name, weight in base.named_parameters()}
    model = method.apply(base, CONTEXT)
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert [name for name in trainable if "classifier" in name]
    optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
    inputs = torch.tensor([[2, 7, 8, 9, 3], [2, 12, 11, 10, 3]])
    for _ in range(2):
        optimizer.zero_grad()
        outputs = model(input_ids=inputs, attention_mask=torch.ones_like(inputs))
        torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 1])).backward()
        optimizer.step()
    assert all(weight.grad is not None for weight in trainable.values())
    now = dict(base.named_parameters())
    kept = {name for name in pristine if "classifier" not in name}
    moved = {
        name
        for name in kept
        for weight in [now.get(name, now.get(name.replace(".weight", ".base_layer.weight")))]
        if weight is not None and not torch.equal(weight, pristine[name])
    }
    assert bool(moved) == method.trains_base_weights


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
