"""Students with fewer layers than their base: which weights they have, and that they come back as they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from application import Application

from peftkit.errors import CapabilityError, RecipeError
from peftkit.models import Storage, load_model, skeleton
from peftkit.predictor import Predictor, load
from peftkit.recipe import ModelSpec, Recipe
from peftkit.tasks import tasks
from peftkit.training import RunOptions, check, run

Checkpoint = Callable[[str], Path]
QUIET = RunOptions(show_progress=False)
TEXTS = ["The soup was lovely.", "rude staff"]
HEAD = tasks.build({"name": "sequence_classification", "labels": ["negative", "positive"]}).head()
PARTS = {
    "bert": "bert.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "gpt2": "transformer.h",
    "llama": "model.layers",
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("kept", [0, 1])
def test_the_kept_layer_has_the_weights_of_the_base(checkpoint: Checkpoint, name: str, kept: int) -> None:
    spec = ModelSpec(id=str(checkpoint(name)))
    whole = load_model(spec, HEAD, storage=Storage()).model
    small = load_model(spec.model_copy(update={"layers": (kept,)}), HEAD, storage=Storage()).model
    assert small.config.num_hidden_layers == 1
    blocks = small.get_submodule(PARTS[name])
    assert len(blocks) == 1
    for key, weight in whole.get_submodule(f"{PARTS[name]}.{kept}").state_dict().items():
        assert torch.equal(blocks[0].state_dict()[key], weight)
    bare = skeleton(spec.model_copy(update={"layers": (kept,)}), HEAD).model
    assert {key: value.shape for key, value in bare.named_parameters()} == {
        key: value.shape for key, value in small.named_parameters()
    }


def test_one_layer_computes_what_the_base_computes_before_its_second(tiny_bert: Path) -> None:
    spec = ModelSpec(id=str(tiny_bert))
    whole, small = (
        load_model(spec.model_copy(update={"layers": layers}), HEAD, storage=Storage()).model.eval()
        for layers in (None, (0,))
    )
    ids = torch.randint(5, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    states = whole.base_model(ids, output_hidden_states=True).hidden_states
    assert torch.equal(small.base_model(ids).last_hidden_state, states[1])


def test_generation_caches_the_kept_layers_at_their_new_places(tiny_llama: Path) -> None:
    head = tasks.build({"name": "text_generation", "architecture": "decoder"}).head()
    small = load_model(ModelSpec(id=str(tiny_llama), layers=(1,)), head, storage=Storage()).model.eval()
    ids = torch.randint(5, 60, (1, 5), generator=torch.Generator().manual_seed(0))
    with_cache, without = (
        small.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cached, eos_token_id=None)
        for cached in (True, False)
    )
    assert torch.equal(with_cache, without)


def _recipe(base: Path, files: dict[str, Path], *, method: Any, layers: list[int]) -> Recipe:
    values = {
        "model": {"id": str(base), "max_length": 32, "layers": layers},
        "task": "sequence_classification",
        "data": {"name": "files"} | {split: str(path) for split, path in files.items()},
        "method": method,
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
    }
    return Recipe.from_values(values, origin="test")


@pytest.mark.training
@pytest.mark.parametrize(
    ("base", "method"), [("bert", "lora"), ("bert", "full"), ("gpt2", "lora"), ("llama", "bottleneck")]
)
def test_a_new_process_predicts_as_the_run(
    checkpoint: Checkpoint,
    sentiment_files: dict[str, Path],
    tmp_path: Path,
    application: Application,
    base: str,
    method: str,
) -> None:
    run(_recipe(checkpoint(base), sentiment_files, method=method, layers=[1]), tmp_path / "run", options=QUIET)
    predictor = load(tmp_path / "run")
    assert predictor.model.config.num_hidden_layers == 1
    assert application(tmp_path / "run", TEXTS) == predictor(TEXTS)


@pytest.mark.training
def test_merged_it_is_a_model_of_its_own_for_transformers(
    tiny_bert: Path, sentiment_files: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    run(_recipe(tiny_bert, sentiment_files, method="lora", layers=[1]), tmp_path / "run", options=QUIET)
    merged = Predictor.load(tmp_path / "run", merge=True)
    merged.model.save_pretrained(tmp_path / "merged")
    alone = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert alone.config.num_hidden_layers == 1
    inputs = merged.tokenizer(TEXTS, return_tensors="pt", padding=True)
    assert torch.allclose(alone(**inputs).logits, torch.tensor(merged.logits(TEXTS)), atol=1e-5)


@pytest.mark.training
def test_the_adapter_names_no_base_that_it_would_not_fit(
    tiny_bert: Path, sentiment_files: dict[str, Path], tmp_path: Path
) -> None:
    run(_recipe(tiny_bert, sentiment_files, method="lora", layers=[1]), tmp_path / "run", options=QUIET)
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"{tiny_bert} (layers 1)"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id": "x", "layers": []}, r"model.layers.*\[\] has to name one layer at least"),
        ({"id": "x", "layers": [1, 0]}, r"model.layers.*\[1, 0\] has to name .* in ascending order"),
        ({"id": "x", "layers": [1, 1]}, r"model.layers.*\[1, 1\] has to name .* each once"),
        ({"id": "x", "layers": [-1]}, r"model.layers.*-1"),
        (
            {"architecture": {"type": "bert"}, "tokenizer": {"type": "wordpiece"}, "layers": [0]},
            "set architecture.num_hidden_layers",
        ),
    ],
)
def test_layers_that_no_recipe_can_name(sentiment_files: dict[str, Path], values: dict[str, Any], message: str) -> None:
    recipe = {"model": values, "task": "sequence_classification", "method": "full"}
    data = {"name": "files"} | {split: str(path) for split, path in sentiment_files.items()}
    with pytest.raises(RecipeError, match=message):
        Recipe.from_values(recipe | {"data": data}, origin="test")


@pytest.mark.parametrize(
    ("base", "layers", "message"),
    [
        ("bert", [0, 2], "model.layers: there is no layer 2, the base has 2, counted from 0 to 1"),
        ("t5", [0], r"model.layers: T5ForSequenceClassification is no single stack .* \(2 stacks\)"),
    ],
)
def test_layers_that_the_base_has_not(
    checkpoint: Checkpoint, sentiment_files: dict[str, Path], base: str, layers: list[int], message: str
) -> None:
    with pytest.raises(CapabilityError, match=message):
        check(_recipe(checkpoint(base), sentiment_files, method="lora", layers=layers), options=QUIET)
