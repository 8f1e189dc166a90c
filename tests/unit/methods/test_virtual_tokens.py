"""prefix, prompt and p_tuning: what they start from, that networks behind them are dropped, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contracts.cells import Cell
from safetensors.torch import load_file

from peftkit.errors import CapabilityError
from peftkit.layers.virtual_tokens import fit_outputs
from peftkit.methods import TuningContext
from peftkit.methods.virtual_tokens import dimensions

MakeCell = Callable[..., Cell]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
METHODS = {
    "prefix": {},
    "prefix through a network": {"name": "prefix", "reparameterisation": True, "encoder_hidden_size": 8},
    "prompt": {},
    "p_tuning": {},
    "p_tuning by lstm": {"name": "p_tuning", "encoder": "lstm"},
}


@pytest.fixture(params=METHODS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    name = str(request.param)
    return {"name": name, **METHODS[name]}


def prompt(model: Any) -> torch.Tensor:
    """The embeddings that stand before the input."""
    found: torch.Tensor = model.get_prompt_embedding_to_save("default")
    return found


def test_prompt_starts_as_tokens_of_the_vocabulary(cell: MakeCell) -> None:
    made = cell("prompt", "llama", virtual_tokens=7)
    model = made.tuned()
    table = made.base().get_input_embeddings().weight
    rows = prompt(model)
    assert rows.shape == (7, 32)
    assert all(any(torch.equal(row, known) for known in table) for row in rows)


def test_prompt_starts_as_a_text_that_is_repeated(cell: MakeCell) -> None:
    made = cell("prompt", "llama", virtual_tokens=9, init="text", init_text="lovely soup")
    tokens = made.tokenizer("lovely soup")["input_ids"]
    table = made.base().get_input_embeddings().weight
    repeated = (tokens * 9)[:9]
    assert torch.equal(prompt(made.tuned()), table[repeated])


def test_random_prompt_is_no_token(cell: MakeCell) -> None:
    made = cell("prompt", "llama", init="random")
    table = made.base().get_input_embeddings().weight
    assert not any(torch.equal(row, known) for row in prompt(made.tuned()) for known in table)


def test_networks_are_dropped_when_training_ends(cell: MakeCell, options: dict[str, Any], tmp_path: Path) -> None:
    """The saved adapter is the prompt alone, and gives the logits of the model that was trained."""
    name = options.pop("name")
    made = cell(name, "llama", **options)
    model = made.tuned()
    made.train(model, steps=3, learning_rate=1e-2)
    before = made.logits(model)
    made.method.finish(model)
    assert torch.allclose(made.logits(model), before, atol=1e-5)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert set(saved) == {"prompt_embeddings"}
    assert saved["prompt_embeddings"].shape[0] == 20
    assert torch.equal(made.logits(made.reloaded(tmp_path)), made.logits(model))


@pytest.mark.parametrize("architecture", ["bert_token", "gpt2", "llama", "t5"])
def test_outputs_are_as_long_as_the_input(cell: MakeCell, architecture: str) -> None:
    made = cell("prompt", architecture)
    model, batch = made.tuned(), made.inputs()
    length = batch.get("decoder_input_ids", batch["input_ids"]).shape[1]
    assert made.logits(model).shape[1] == length
    embedded = {name: value for name, value in batch.items() if name != "input_ids"}
    embedded["inputs_embeds"] = model.get_input_embeddings()(batch["input_ids"])
    with torch.no_grad():
        assert model(**embedded).logits.shape[1] == length


def test_disabling_takes_the_trained_head_out_too(cell: MakeCell) -> None:
    made = cell("prefix")
    base = made.logits(made.base())
    model = made.tuned()
    made.train(model, steps=5, learning_rate=1e-1)
    tuned = made.logits(model)
    with model.disable_adapter():
        assert torch.equal(made.logits(model), base)
    assert torch.equal(made.logits(model), tuned)
    assert model.get_base_model().classifier.modules_to_save["default"].weight.requires_grad


def test_other_models_are_left_alone(cell: MakeCell) -> None:
    model = cell("lora").tuned()
    assert fit_outputs(model) is model
    assert not model._forward_hooks


def test_head_that_peft_leaves_random_is_refused(cell: MakeCell) -> None:
    """With a head of two layers peft trains only the modules it knows by name."""
    made = cell("prompt")
    model = made.tuned()
    with pytest.raises(CapabilityError, match=r"peft does not train bert\.pooler of BertForSequenceClassification"):
        fit_outputs(model, head_modules=("bert.pooler",))


def test_more_virtual_tokens_than_positions_are_refused(cell: MakeCell) -> None:
    made = cell("prompt", virtual_tokens=64)
    problem = made.method.problem(made.skeleton(), TuningContext("SEQ_CLS", ("classifier",), 10))
    assert problem is not None
    assert problem.startswith("method.virtual_tokens 64 leaves no room for the input")
    assert "64 positions; use fewer" in problem


@pytest.mark.parametrize(
    "options", [{"init": "text"}, {"init_text": "kind"}, {"init": "random", "init_text": "kind"}], ids=str
)
def test_text_belongs_to_its_start(cell: MakeCell, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="init_text belongs to init 'text'"):
        cell("prompt", **options)


def test_configuration_without_sizes_is_refused() -> None:
    sizes = SimpleNamespace(hidden_size=32, num_hidden_layers=2)
    model: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: sizes))
    with pytest.raises(CapabilityError, match=r"does not state its num_attention_heads .* use lora"):
        dimensions(model)
