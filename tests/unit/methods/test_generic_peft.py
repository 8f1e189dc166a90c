"""Every method of the installed peft through one component: it trains and loads, or says why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.cells import Cell
from peft import PeftType
from pydantic import ValidationError

from peftkit.errors import CapabilityError
from peftkit.methods import methods
from peftkit.methods.peft_adapter import check_trained

MakeCell = Callable[..., Cell]
pytestmark = pytest.mark.filterwarnings(
    # peft's advice on its methods, and torch's on a sparse tensor, are no matter here
    "ignore::UserWarning",
    "ignore::FutureWarning",
)
KINDS = sorted(kind.value for kind in PeftType if "IMPORT PEFTKIT" not in kind.value)
SMALL: dict[str, dict[str, Any]] = {
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 50},
    "MISS": {"r": 8},
    "PSOFT": {"r": 8},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 4},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "WAVEFT": {"n_frequency": 50},
}
"""Options that fit layers of width 32 where peft's defaults are for wider ones."""
REFUSED = {
    "ADALORA": "use method adalora",
    "POLY": "needs the number of a task",
    "MULTITASK_PROMPT_TUNING": "needs the number of a task",
    "XLORA": "mixes adapters that are trained already",
    "TRAINABLE_TOKENS": "use method trainable_tokens",
}


def refusal(cell: Cell) -> str:
    problem = cell.method.problem(cell.skeleton(), cell.context)
    assert problem is not None
    return problem


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_trains_and_loads_or_says_why_not(cell: MakeCell, tmp_path: Path, kind: str) -> None:
    chosen = cell("peft", "llama", type=kind.lower(), options=SMALL.get(kind, {}))
    if kind in REFUSED:
        assert f"method peft:{kind.lower()} is not possible: " in refusal(chosen)
        assert REFUSED[kind] in refusal(chosen)
        return
    assert chosen.refusal() is None
    model = chosen.tuned()
    assert {config.peft_type.value for config in model.peft_config.values()} == {kind}
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    chosen.train(model, steps=2, learning_rate=1e-2)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert moved <= {name for name, weight in model.named_parameters() if weight.requires_grad}
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    assert torch.equal(chosen.logits(chosen.reloaded(tmp_path)), chosen.logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_trains_a_new_head_or_says_why_not(cell: MakeCell, kind: str) -> None:
    chosen = cell("peft", type=kind.lower(), options=SMALL.get(kind, {}))
    reason = chosen.refusal()
    if reason is not None:
        assert "method" in reason, reason
        assert reason.rstrip()[-1] not in ".:;", reason
        return
    trainable = [name for name, weight in chosen.tuned().named_parameters() if weight.requires_grad]
    assert [name for name in trainable if "classifier" in name]
    assert [name for name in trainable if "classifier" not in name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0, -1, "many"])
def test_values_that_peft_cannot_use_are_no_traceback(cell: MakeCell, kind: str, value: Any) -> None:
    for option in ("r", "rank", "num_virtual_tokens"):
        try:
            chosen = cell("peft", "llama", type=kind.lower(), options={option: value})
        except ValidationError as problem:
            assert f"options.{option} is no option of" in str(problem)  # noqa: PT017 # either is right
            continue
        chosen.refusal()  # None, or words: any other error fails the test


def test_types_that_have_a_method_here_stay_reachable(cell: MakeCell) -> None:
    by_hand = cell("lora", rank=3, alpha=6.0).tuned()
    generic = cell("peft", type="lora", options={"r": 3, "lora_alpha": 6}).tuned()
    assert [(name, weight.shape) for name, weight in by_hand.named_parameters() if weight.requires_grad] == [
        (name, weight.shape) for name, weight in generic.named_parameters() if weight.requires_grad
    ]


def test_norms_are_tuned_where_the_method_is_about_norms(cell: MakeCell) -> None:
    model = cell("peft", type="ln_tuning").tuned()
    adapted = [name for name, weight in model.named_parameters() if weight.requires_grad and "classifier" not in name]
    assert adapted
    assert all("LayerNorm" in name for name in adapted)


def test_shorthand_names_the_type() -> None:
    assert methods.build("peft:lily") == methods.build({"name": "peft", "type": "lily"})
    assert methods.build("peft:LiLy").spec()["type"] == "LiLy"


def test_targets_are_chosen_as_for_lora(cell: MakeCell) -> None:
    model = cell("peft", "llama", type="lily", target_modules=["q_proj", "down_proj"]).tuned()
    adapted = {name.split(".lily_")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lily_" in name}
    assert adapted == {"q_proj", "down_proj"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "lilly"}, r"type 'lilly' is no method of the installed peft; did you mean 'lily'\? \(it has: .*road"),
        ({"type": "moonshot"}, r"type 'moonshot' is no method of the installed peft \(it has: adalora, adamss"),
        ({"type": "bottleneck"}, "type 'bottleneck' is no method of the installed peft"),
        ({"type": "bitfit: import peftkit first"}, "is no method of the installed peft"),
        ({"type": ""}, "at least 1 character"),
        ({"type": "lily", "options": {"rnak": 3}}, r"options.rnak is no option of LilyConfig.* \(it has: r, "),
        (
            {"type": "lora", "options": {"lora_alhpa": 3}},
            "options.lora_alhpa is no option of LoraConfig; did you mean 'lora_alpha'",
        ),
        ({"type": "lora", "options": {"target_modules": "q"}}, "is set by the run; for layers use method.target_mod"),
        ({"type": "lora", "options": {"task_type": "SEQ_CLS"}}, "options.task_type is set by the run"),
        ({"type": "lora", "options": {"base_model_name_or_path": "x"}}, "options.base_model_name_or_path is set by"),
        ({"type": "prompt_tuning", "target_modules": "attention"}, "is put on no layers of choice; remove target_mod"),
    ],
)
def test_recipes_that_peft_does_not_know_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        methods.build({"name": "peft", **options})


def test_list_of_types_leaves_out_what_peftkit_adds() -> None:
    with pytest.raises(ValidationError) as caught:
        methods.build("peft:moonshot")
    assert "peftkit" not in str(caught.value).partition("(it has:")[2].partition(")")[0]


def test_options_that_a_config_class_refuses_are_found_before_weights_are_loaded(cell: MakeCell) -> None:
    problem = refusal(cell("peft", type="lora", options={"r": 4, "use_dora": True, "megatron_config": {"a": 1}}))
    assert problem.startswith("peft's LoraConfig cannot be made for SEQ_CLS with {'r': 4, 'use_dora': True, 'megatron")
    assert problem.endswith("; change method.options, or choose another method")


def test_type_for_another_task_is_refused(cell: MakeCell) -> None:
    assert "CPTConfig only supports task_type = CAUSAL_LM; change" in refusal(cell("peft", type="cpt"))


def test_options_that_peft_needs_are_named(cell: MakeCell) -> None:
    problem = refusal(cell("peft", "llama", type="adaption_prompt", options={"adapter_len": 3}))
    assert problem == "method peft:adaption_prompt needs adapter_layers in method.options; add them"


def test_layers_that_a_type_cannot_change_are_refused_in_words(cell: MakeCell) -> None:
    chosen = cell("peft", "gpt2", type="lily")
    with pytest.raises(CapabilityError, match=r"'peft:lily' cannot tune GPT2LMHeadModel: Lily does .*Conv1D"):
        chosen.method.apply(chosen.base(), chosen.context)


def test_type_that_finds_nothing_to_train_is_refused(cell: MakeCell) -> None:
    chosen = cell("peft", "gpt2", type="osf")
    with pytest.raises(CapabilityError, match="method 'peft:osf' finds nothing in GPT2LMHeadModel that it could train"):
        chosen.method.apply(chosen.base(), chosen.context)


def test_head_that_would_stay_random_is_refused(cell: MakeCell) -> None:
    chosen = cell("peft", type="lora")
    tuned = chosen.tuned()
    tuned.get_base_model().classifier.requires_grad_(False)
    with pytest.raises(CapabilityError, match="'x' does not train classifier of BertForSequenceClassification, so"):
        check_trained(tuned, ("classifier",), method="x")


@pytest.mark.parametrize("kind", ["prefix_tuning", "cartridge"])
def test_keys_and_values_refuse_gradient_checkpointing(cell: MakeCell, kind: str) -> None:
    chosen = cell("peft", type=kind)
    problem = chosen.method.problem(chosen.skeleton(), replace(chosen.context, gradient_checkpointing=True))
    assert problem is not None
    assert f"method peft:{kind} does not allow training.gradient_checkpointing" in problem
