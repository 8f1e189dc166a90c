"""Blocks below all that trains are computed once, and the run is the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftkit.artifacts.places import trunks_dir
from peftkit.errors import RecipeError
from peftkit.recipe import Recipe
from peftkit.results import RunResult
from peftkit.training import RunOptions, resume, run

pytestmark = pytest.mark.training

Checkpoint = Callable[[str], Path]
Make = Callable[..., Recipe]
QUIET = RunOptions(show_progress=False)
STILL = {
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "seq_classif_dropout": 0.0,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}


@pytest.fixture
def make(sentiment_files: dict[str, Path], checkpoint: Checkpoint, tmp_path: Path) -> Make:
    """Function from an architecture and sections of a recipe to a recipe of three epochs on a model without dropout."""

    def recipe(name: str = "bert", method: Any = "head_only", dropout: bool = False, **sections: Any) -> Recipe:
        base = tmp_path / f"still-{name}"
        if dropout:
            base = checkpoint(name)
        elif not base.exists():
            shutil.copytree(checkpoint(name), base)
            config = json.loads((base / "config.json").read_text())
            known = {key: value for key, value in STILL.items() if key in config}
            (base / "config.json").write_text(json.dumps(config | known))
        training = {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "logging_steps": 1, "max_grad_norm": 0}
        values = {
            "name": "tiny",
            "model": {"id": str(base), "max_length": 32} | sections.pop("model", {}),
            "task": {"name": "sequence_classification", "labels": ["negative", "positive"]},
            "data": {"name": "files"} | {split: str(path) for split, path in sentiment_files.items()},
            "method": method,
            "training": training | sections.pop("training", {}),
        }
        return Recipe.from_values(values | sections, origin="test")

    return recipe


def told(result: RunResult) -> str:
    return str(result.execution["trunk_cache"])


def numbers(text: str) -> tuple[int, int]:
    """Inputs computed, and read."""
    computed, read = text.split(" blocks, ")[1].split(" inputs computed, ")
    return int(computed), int(read.split()[0])


def curve(result: RunResult) -> list[float]:
    return [point.values["loss"] for point in result.history if "loss" in point.values]


def weights(folder: Path) -> Mapping[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def same(found: Path, wanted: Path, *, exactly: bool) -> None:
    ours, theirs = weights(found), weights(wanted)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        if exactly:
            assert torch.equal(ours[name], weight), name
        else:
            torch.testing.assert_close(ours[name], weight, atol=2e-4, rtol=2e-3)


METHODS: dict[str, Any] = {
    "head_only": "head_only",
    "last_layers": {"name": "last_layers", "layers": 1},
    "lora": {"name": "lora", "rank": 4, "layers": [1]},
}
OFF = {"training": {"trunk_cache_gib": 0}}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("bert", "head_only"),
        ("bert", "last_layers"),
        ("distilbert", "last_layers"),
        ("roberta", "head_only"),
        ("gpt2", "last_layers"),
        ("llama", "head_only"),
    ],
)
def test_a_run_is_that_without(name: str, method: str, make: Make, tmp_path: Path) -> None:
    """To rounding: matrix products of other shapes add up in another order, and here later epochs pad otherwise."""
    plain = run(make(name, METHODS[method], **OFF), tmp_path / "plain", options=QUIET)
    first = run(make(name, METHODS[method]), tmp_path / "first", options=QUIET)
    assert told(plain) == "off: training.trunk_cache_gib is 0"
    assert told(first).startswith(f"on: {2 if method == 'head_only' else 1} of 2 blocks"), told(first)
    assert numbers(told(first))[0] == 64  # 48 and 16 rows, each once
    assert numbers(told(first))[1] >= 2 * 48 + 2 * 16
    same(tmp_path / "first", tmp_path / "plain", exactly=False)
    assert curve(first) == pytest.approx(curve(plain), rel=1e-3, abs=1e-5)


def test_a_second_run_reads_what_the_first_has_written(make: Make, tmp_path: Path) -> None:
    recipe = make("bert", METHODS["last_layers"])
    run(recipe, tmp_path / "first", options=QUIET)
    files = sorted(trunks_dir().rglob("*.safetensors"))
    second = run(recipe, tmp_path / "second", options=QUIET)
    assert numbers(told(second)) == (0, 3 * 48 + 4 * 16)  # validation rows after each epoch and at the end
    assert sorted(trunks_dir().rglob("*.safetensors")) == files
    same(tmp_path / "second", tmp_path / "first", exactly=True)  # its very bits were read
    other = run(make("bert", METHODS["lora"], seed=3), tmp_path / "third", options=QUIET)
    assert numbers(told(other))[0] == 0, "neither method nor seed changes what lies below"


@pytest.mark.parametrize(
    ("change", "folders", "computed"),
    [
        ({"method": METHODS["head_only"]}, 2, 64),
        ({"model": {"max_length": 6}}, 1, None),
        ({"training": {"padding_free": False}}, 1, 0),
        ({"training": {"eval_batch_size": 3, "batch_size": 5}}, 1, 0),
    ],
    ids=["another depth", "another length", "another execution", "other batches"],
)
def test_what_is_read_in_other_runs(
    change: dict[str, Any], folders: int, computed: int | None, make: Make, tmp_path: Path
) -> None:
    run(make("bert", METHODS["last_layers"]), tmp_path / "first", options=QUIET)
    second = run(make("bert", **{"method": METHODS["last_layers"], **change}), tmp_path / "second", options=QUIET)
    assert len(list(trunks_dir().iterdir())) == folders
    if computed is None:  # rows that are cut are others; those that are short enough are read
        assert 0 < numbers(told(second))[0] < 64
    else:
        assert numbers(told(second))[0] == computed


def test_another_base_has_other_states(make: Make, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    recipe = make("bert", METHODS["last_layers"])
    run(recipe, tmp_path / "first", options=QUIET)
    path = Path(str(recipe.model.id)) / "model.safetensors"
    state = load_file(path)
    changed = next(name for name in state if "layer.0" in name and name.endswith("weight"))
    save_file({**state, changed: state[changed] * 1.001}, path, metadata={"format": "pt"})
    second = run(recipe, tmp_path / "second", options=QUIET)
    assert numbers(told(second))[0] == 64
    assert len(list(trunks_dir().iterdir())) == 2


def test_a_resumed_run_is_the_run(make: Make, tmp_path: Path, run_cut: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make("bert", METHODS["last_layers"])
    run(recipe, tmp_path / "whole", options=QUIET)
    monkeypatch.setenv("PEFTKIT_CACHE", str(tmp_path / "other"))
    run_cut(recipe, tmp_path / "cut", 8)
    resumed = resume(tmp_path / "cut", options=QUIET)
    assert numbers(told(resumed))[0] == 0
    same(tmp_path / "cut", tmp_path / "whole", exactly=True)


@pytest.mark.parametrize("spoil", ["bit", "index", "cut", "empty"])
def test_damaged_files_are_found(spoil: str, make: Make, tmp_path: Path) -> None:
    recipe = make("bert", METHODS["last_layers"])
    run(recipe, tmp_path / "first", options=QUIET)
    path = max(trunks_dir().rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    if spoil == "cut":
        content = content[:-100]
    elif spoil == "empty":
        content = bytearray()
    else:
        header = int.from_bytes(content[:8], "little")
        entry = json.loads(content[8 : 8 + header])["states" if spoil == "bit" else "keys"]
        content[8 + header + entry["data_offsets"][0] + 5] ^= 1
    path.write_bytes(content)
    second = run(recipe, tmp_path / "second", options=QUIET)
    assert "1 damaged files were computed anew" in told(second)
    assert not path.exists()
    assert numbers(told(second))[0] > 0
    same(tmp_path / "second", tmp_path / "first", exactly=False)
    third = run(recipe, tmp_path / "third", options=QUIET)
    assert numbers(told(third))[0] == 0


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"method": {"name": "lora", "rank": 4}}, "the lowest block of the model trains"),
        ({"method": "gradual_unfreezing", "training": {"epochs": 6}}, "the lowest block of the model trains"),
        ({"method": {"name": "prompt", "virtual_tokens": 3}}, "the lowest block of the model trains"),
        ({"regularizers": ["neftune"]}, "regularizer 'neftune' changes what the lowest block reads"),
        ({"regularizers": ["fgm"]}, "regularizer 'fgm' changes what the lowest block reads"),
        ({"training": {"epochs": 1}}, "each row is read once"),
        ({"training": {"max_steps": 6}}, "each row is read once"),
        ({"training": {"trunk_cache_gib": 1e-6}}, "GiB; training.trunk_cache_gib allows less"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:40],
)
def test_reasons_against(sections: dict[str, Any], reason: str, make: Make, tmp_path: Path) -> None:
    result = run(make("bert", **sections), tmp_path / "run", options=QUIET)
    assert told(result).startswith("off: ")
    assert reason in told(result)
    assert not list(trunks_dir().glob("*"))


def test_dropout_leaves_evaluation(make: Make, tmp_path: Path) -> None:
    plain = run(make("bert", dropout=True, **OFF), tmp_path / "plain", options=QUIET)
    result = run(make("bert", dropout=True), tmp_path / "run", options=QUIET)
    assert "in evaluation only: dropout acts" in told(result)
    assert curve(result) == curve(plain), "training is untouched, its random numbers included"
    same(tmp_path / "run", tmp_path / "plain", exactly=True)
    assert numbers(told(result))[1] >= 3 * 16


def test_dropout_of_the_frozen_part_can_be_turned_off(make: Make, tmp_path: Path) -> None:
    sections = {"method": METHODS["last_layers"], "dropout": True}
    still = {"training": {"frozen_dropout": False, "trunk_cache_gib": 0}}
    with_cache = run(make("bert", **sections, training={"frozen_dropout": False}), tmp_path / "on", options=QUIET)
    assert "evaluation only" not in told(with_cache)
    assert numbers(told(with_cache))[0] == 64
    without = run(make("bert", **sections, **still), tmp_path / "off", options=QUIET)
    assert curve(with_cache) == pytest.approx(curve(without), rel=1e-3, abs=1e-5)


def test_a_trunk_whose_dropout_cannot_be_told_apart(make: Make, tmp_path: Path) -> None:
    recipe = make("bert", {"name": "lora", "rank": 4}, training={"frozen_dropout": False})
    with pytest.raises(RecipeError, match="frozen_dropout is false, but the lowest block of the model trains"):
        run(recipe, tmp_path / "run", options=QUIET)


@pytest.mark.parametrize("method", ["head_only", "last_layers"])
def test_autograd_keeps_nothing_of_the_frozen_part(method: str, make: Make, checkpoint: Checkpoint) -> None:
    from peftkit.models import load_model
    from peftkit.storage import Storage
    from peftkit.tasks import Head

    recipe = make("llama", METHODS[method])
    head = Head("AutoModelForSequenceClassification", {"num_labels": 2}, "SEQ_CLS")
    model: Any = load_model(recipe.model, head, storage=Storage()).model.train().requires_grad_(False)
    blocks = model.model.layers
    model.score.requires_grad_(True)
    if method == "last_layers":
        blocks[-1].requires_grad_(True)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    after: list[int] = []
    blocks[0 if method == "last_layers" else 1].register_forward_hook(lambda *_: after.append(len(kept)))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=torch.full((2, 5), 7))
    assert after == [0]
    assert kept
