"""Stacks and single tokens: what is added to a main method, what a stack answers for its parts, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.cells import TOKENS, Cell
from pydantic import ValidationError
from safetensors.torch import load_file

import peftkit
from peftkit.cli.entry import main
from peftkit.errors import CapabilityError
from peftkit.methods import methods
from peftkit.recipe import Recipe
from peftkit.training import RunOptions, run

MakeCell = Callable[..., Cell]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
ADD_TOKENS = {"name": "trainable_tokens", "tokens": list(TOKENS)}


def stack(*parts: Any) -> Any:
    return methods.build({"name": "stack", "methods": list(parts)})


def test_recipe_may_write_a_list() -> None:
    text = "model: m\ntask: sequence_classification\ndata: {name: files, train: t.csv}\nmethod: [lora, layer_norm]\n"
    method: Any = Recipe.from_text(text).method
    assert [part.name for part in method.methods] == ["lora", "layer_norm"]
    assert method == stack("lora", "layer_norm")


def test_facts_follow_from_the_parts() -> None:
    plain, slow = stack("lora", "layer_norm"), stack("adalora", "layer_norm")
    assert plain.default_learning_rate == methods.get("lora").default_learning_rate
    assert (plain.mergeable, stack("bottleneck", "layer_norm").mergeable) == (True, False)
    assert (plain.runs_to_the_end, slow.runs_to_the_end) == (False, True)
    assert stack("loha", "layer_norm").base_bits == methods.get("loha").base_bits
    assert not stack("boft", "layer_norm").adapts_conv1d
    assert not stack("prefix", "layer_norm").allows_gradient_checkpointing
    assert not plain.trains_base_weights


def test_facts_depend_on_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "method", "stack"]) == 0
    printed = capsys.readouterr().out
    for fact in ("base weights", "merging", "GPT-2", "gradient checkpointing"):
        assert any(fact in line and "depends on its options" in line for line in printed.splitlines()), fact


def test_only_lora_part_and_norms_train(cell: MakeCell) -> None:
    model = cell("stack", methods=["lora", "layer_norm"]).tuned()
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    kinds = {"lora_", "LayerNorm.modules_to_save", "classifier.modules_to_save"}
    assert all(any(kind in name for kind in kinds) for name in trained)
    assert all(any(kind in name for name in trained) for kind in kinds)


@pytest.mark.parametrize("name", ["lora", "dora", "adalora", "bottleneck", "bitfit"])
def test_new_tokens_train_beside_a_method(cell: MakeCell, name: str) -> None:
    """Just their rows of the embedding change."""
    options: dict[str, Any] = {"name": name} | ({"width": 8} if name == "bottleneck" else {})
    made = cell("stack", methods=[options, ADD_TOKENS])
    base = made.base().get_input_embeddings().weight.detach().clone()
    model = made.tuned()
    rows = [weight for key, weight in model.named_parameters() if "trainable_tokens_delta" in key]
    assert [tuple(weight.shape) for weight in rows] == [(2, 32)]
    assert rows[0].requires_grad
    ids = made.tokenizer.convert_tokens_to_ids(list(TOKENS))
    batch = {"input_ids": torch.tensor([[5, *ids]])}
    logits = model(**batch).logits
    logits.square().sum().backward()
    assert rows[0].grad is not None
    assert rows[0].grad.abs().sum(1).gt(0).all()
    assert torch.equal(model.get_base_model().get_input_embeddings().original_module.weight, base)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["lora", "ia3"], "method 'ia3' cannot be added to 'lora': it is no choice of modules or tokens"),
        (["layer_norm", "lora"], "method 'lora' cannot be added to 'layer_norm'"),
        (["lora", {"name": "last_layers", "layers": 9}], "method.layers is 9"),
    ],
)
def test_parts_that_do_not_fit_are_refused(cell: MakeCell, parts: list[Any], message: str) -> None:
    made = cell("stack", methods=parts)
    problem = made.method.problem(made.skeleton(), made.context)
    assert problem is not None
    assert message in problem


def test_method_that_cannot_train_tokens_is_named(cell: MakeCell) -> None:
    with pytest.raises(CapabilityError, match="method 'ia3' cannot train single tokens beside its own weights"):
        cell("stack", methods=["ia3", ADD_TOKENS]).tuned()


def test_one_method_is_no_stack() -> None:
    with pytest.raises(ValidationError, match="at least 2 items"):
        stack("lora")


@pytest.mark.training
def test_run_with_new_tokens_saves_rows_and_tokenizer(
    tiny_bert: Path, sentiment_files: dict[str, Path], tmp_path: Path
) -> None:
    recipe = Recipe.from_values(
        {
            "name": "tokens",
            "model": {"id": str(tiny_bert), "max_length": 32},
            "task": {"name": "sequence_classification", "labels": ["negative", "positive"]},
            "data": {"name": "files"} | {split: str(path) for split, path in sentiment_files.items()},
            "method": ["lora", {"name": "trainable_tokens", "tokens": ["<order>", "film"]}],
            "training": {"epochs": 1, "batch_size": 8},
        },
        origin="test",
    )
    run(recipe, tmp_path / "run", options=RunOptions(show_progress=False))
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    rows = {name: tuple(weight.shape) for name, weight in saved.items() if "token_adapter" in name}
    assert list(rows.values()) == [(2, 32)]
    assert not any("embeddings.weight" in name for name in saved)
    predict = peftkit.load(tmp_path / "run")
    assert predict.tokenizer.tokenize("an <order> film")[1:] == ["<order>", "film"]
    assert predict("an <order> film")[0]["label"] in ("negative", "positive")
