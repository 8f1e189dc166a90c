"""The method `bitfit`: what it trains by its options, and that it says so where there is nothing to train.

That a run trains, resumes and predicts with it is tested beside `bottleneck`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from peftkit.errors import CapabilityError
from peftkit.methods import TuningContext, methods

CONTEXT = TuningContext(peft_task_type="SEQ_CLS", head_modules=("classifier",), total_steps=10)


def classifier(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)


def skeleton(folder: Path) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def trained(model: Any) -> set[str]:
    """Endings, after the layer number, of the layers whose bias trains."""
    names = [name for name, weight in model.named_parameters() if weight.requires_grad and "bitfit_bias" in name]
    return {name.removesuffix(".bitfit_bias.default").rpartition(".layer.")[2].partition(".")[2] for name in names}


def test_all_biases_but_the_heads_train(tiny_roberta: Path) -> None:
    model = methods.build("bitfit").apply(classifier(tiny_roberta), CONTEXT)
    assert trained(model) == {
        *(f"attention.self.{layer}" for layer in ("query", "key", "value")),
        *("attention.output.dense", "attention.output.LayerNorm"),
        *("intermediate.dense", "output.dense", "output.LayerNorm"),
        "model.roberta.embeddings.LayerNorm",
    }
    whole = {name for name, weight in model.named_parameters() if weight.requires_grad and "modules_to_save" in name}
    assert {name.partition("modules_to_save.default.")[2] for name in whole} == {
        *("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias"),
    }


def test_query_and_intermediate_biases_train(tiny_bert: Path) -> None:
    method = methods.build({"name": "bitfit", "targets": "query_and_intermediate"})
    assert trained(method.apply(classifier(tiny_bert), CONTEXT)) == {"attention.self.query", "intermediate.dense"}


def test_it_can_be_merged_and_bottleneck_cannot() -> None:
    assert methods.get("bitfit").mergeable
    assert not methods.get("bottleneck").mergeable


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_t5"])
def test_model_without_biases_is_refused_before_it_has_weights(request: pytest.FixtureRequest, fixture: str) -> None:
    folder = request.getfixturevalue(fixture)
    method = methods.build("bitfit")
    context = TuningContext("SEQ_CLS", ("score", "classification_head"), 10)
    problem = method.problem(skeleton(folder), context)
    assert problem is not None
    assert "has no biases outside its head" in problem
    assert problem.endswith("choose method lora, or bottleneck")
    with pytest.raises(CapabilityError, match="has no biases outside its head"):
        method.apply(classifier(folder), context)


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_distilbert", "tiny_roberta", "tiny_gpt2"])
def test_nothing_is_refused_where_there_are_biases(request: pytest.FixtureRequest, fixture: str) -> None:
    assert methods.build("bitfit").problem(skeleton(request.getfixturevalue(fixture)), CONTEXT) is None


def test_fused_queries_are_refused(tiny_gpt2: Path) -> None:
    method = methods.build({"name": "bitfit", "targets": "query_and_intermediate"})
    problem = method.problem(skeleton(tiny_gpt2), CONTEXT)
    assert problem is not None
    assert "does not have a bias of its own in every query layer" in problem
    assert problem.endswith("use targets: all")


def test_unknown_targets_are_refused() -> None:
    with pytest.raises(ValidationError, match="targets"):
        methods.build({"name": "bitfit", "targets": "mlp"})
