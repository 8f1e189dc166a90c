"""What LoRA's options do to the model: which layers, which rank, which scale, what trains and how fast."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.cells import Cell
from pydantic import ValidationError

from peftkit.errors import InterruptedRunError
from peftkit.methods import methods
from peftkit.methods.patterns import by_pattern
from peftkit.recipe import Recipe
from peftkit.training import RunOptions, resume, run
from peftkit.training.callbacks import ShowProgress

MakeCell = Callable[..., Cell]
QUIET = RunOptions(show_progress=False)


def updated(model: Any) -> dict[str, Any]:
    return {
        name: layer
        for name, layer in model.get_base_model().named_modules()
        if hasattr(layer, "lora_A") and "default" in layer.lora_A
    }


def refusal(cell: Cell) -> str:
    problem = cell.method.problem(cell.skeleton(), cell.context)
    assert problem is not None
    return problem


@pytest.mark.parametrize(
    ("architecture", "layers", "beginnings"),
    [
        ("bert_sequence", [1], {"bert.encoder.layer.1"}),
        ("gpt2", [0], {"transformer.h.0"}),
        ("llama", [0, 1], {"model.layers.0", "model.layers.1"}),
        ("t5", [1], {"encoder.block.1", "decoder.block.1"}),
    ],
)
def test_layers_touch_just_these_blocks(
    cell: MakeCell, architecture: str, layers: list[int], beginnings: set[str]
) -> None:
    everywhere = updated(cell("lora", architecture).tuned())
    chosen = cell("lora", architecture, layers=layers)
    assert chosen.refusal() is None
    found = updated(chosen.tuned())
    assert set(found) == {name for name in everywhere if any(name.startswith(f"{start}.") for start in beginnings)}
    assert found


def test_layers_and_targets_both_hold(cell: MakeCell) -> None:
    found = updated(cell("lora", "llama", layers=[1], target_modules=["q_proj", "layers.1.mlp.down_proj"]).tuned())
    assert set(found) == {"model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"}


@pytest.mark.parametrize(("layers", "named"), [([0, 2], 2), ([-1], -1), ([7], 7)])
def test_block_that_is_not_there_is_refused(cell: MakeCell, layers: list[int], named: int) -> None:
    message = f"method.layers names block {named}, but BertForSequenceClassification has blocks 0 to 1"
    assert refusal(cell("lora", layers=layers)) == message


def test_targets_outside_the_blocks_are_refused(cell: MakeCell) -> None:
    problem = refusal(cell("lora", layers=[0], target_modules=["pooler.dense"]))
    assert problem == "method.layers [0] hold none of the targets, which are: bert.pooler.dense"


def test_target_that_is_not_there_is_refused_before_weights_are_loaded(cell: MakeCell) -> None:
    assert "'q_proj' is the end of no linear layer's name" in refusal(cell("lora", target_modules=["q_proj"]))


def test_ranks_and_alphas_by_pattern(cell: MakeCell) -> None:
    options = {"rank": 4, "alpha": 6, "rank_pattern": {"query": 2, "0.output.dense": 7}, "alpha_pattern": {"key": 1.5}}
    found = updated(cell("lora", **options).tuned())
    for name, layer in found.items():
        rank = 2 if name.endswith("query") else 7 if name.endswith("layer.0.output.dense") else 4
        alpha = 1.5 if name.endswith("key") else 6
        assert layer.lora_A["default"].weight.shape[0] == rank, name
        assert layer.lora_B["default"].weight.shape[1] == rank, name
        assert layer.scaling["default"] == alpha / rank, name
    assert {layer.r["default"] for layer in found.values()} == {2, 4, 7}


@pytest.mark.parametrize("option", ["rank_pattern", "alpha_pattern"])
def test_pattern_that_selects_nothing_is_refused(cell: MakeCell, option: str) -> None:
    problem = refusal(cell("lora", **{option: {"query": 2, "q_proj": 3}, "target_modules": "attention"}))
    assert problem.startswith(f"method.{option}: 'q_proj' is the end of no updated layer's name; these are: bert.enc")
    assert "intermediate" not in problem


def test_first_pattern_wins_as_in_peft(cell: MakeCell) -> None:
    pattern = {"layer.0.attention.self.query": 2, "query": 3}
    found = updated(cell("lora", rank=4, rank_pattern=pattern).tuned())
    ranks = {name: layer.r["default"] for name, layer in found.items()}
    assert ranks == by_pattern(list(found), pattern, default=4, option="rank_pattern")
    assert sorted(set(ranks.values())) == [2, 3, 4]


def test_rank_stabilized_scale(cell: MakeCell) -> None:
    plain, stabilized = (
        updated(cell("lora", rank=5, alpha=7.5, rank_stabilized=stable).tuned()) for stable in (False, True)
    )
    assert {layer.scaling["default"] for layer in plain.values()} == {7.5 / 5}
    assert {layer.scaling["default"] for layer in stabilized.values()} == {7.5 / math.sqrt(5)}


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_freeze_a_trains_b_only(cell: MakeCell, name: str) -> None:
    chosen = cell(name, "llama", rank=3, freeze_a=True)
    model = chosen.tuned()
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    chosen.train(model, steps=2, learning_rate=0.1)
    moved = {key for key, weight in model.named_parameters() if not torch.equal(weight, before[key])}
    kinds = {"B", "magnitude_vector"} if name == "dora" else {"B"}
    assert {key.split(".lora_")[1].partition(".")[0] for key in moved} == kinds
    trainable = {key: weight.numel() for key, weight in model.named_parameters() if weight.requires_grad}
    # llama of width 32, inner width 64, 2 layers; 2 of 4 heads for keys and values: their outputs are 16 wide
    outputs = 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)
    assert sum(trainable.values()) == outputs * (3 + (name == "dora"))


@pytest.mark.parametrize("start", ["default", "pissa"])
def test_b_learns_faster_by_the_ratio(cell: MakeCell, start: str) -> None:
    chosen = cell("lora", learning_rate_ratio=16, init=start)
    model = chosen.tuned()
    rates = chosen.method.learning_rates(model, learning_rate=2e-4)
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert set(rates) == {name for name in trainable if ".lora_B." in name}
    assert set(rates.values()) == {16 * 2e-4}
    assert len(rates) == 13  # 6 layers in each of 2 blocks, and the pooler
    assert [name for name in trainable - set(rates) if "lora_" in name and "lora_A" not in name] == []


def test_rates_are_equal_without_a_ratio(cell: MakeCell) -> None:
    chosen = cell("lora")
    assert chosen.method.learning_rates(chosen.tuned(), learning_rate=1e-3) == {}


def test_dora_trains_a_magnitude_for_each_output(cell: MakeCell) -> None:
    """y = m (W + s B A) x / |W + s B A| + bias, the norm over the inputs of each output."""
    model = cell("dora", rank=3, alpha=6, target_modules=["query"]).tuned()
    layer = updated(model)["bert.encoder.layer.0.attention.self.query"]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    magnitude = layer.lora_magnitude_vector["default"].weight
    base = layer.get_base_layer()
    torch.testing.assert_close(magnitude, base.weight.norm(dim=1))
    with torch.no_grad():
        b.normal_(generator=torch.Generator().manual_seed(3))
        magnitude.mul_(torch.linspace(0.5, 2.0, 32))
        x = torch.randn(5, 32, generator=torch.Generator().manual_seed(4))
        changed = base.weight + 6 / 3 * b @ a
        expected = x @ (magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True)).T + base.bias
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_dora_takes_the_options_of_lora() -> None:
    assert set(methods.get("dora").model_fields) == set(methods.get("lora").model_fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_a": True, "learning_rate_ratio": 4}, "learning_rate_ratio compares A and B, but freeze_a leaves A"),
        ({"learning_rate_ratio": 0.5}, "greater than or equal to 1"),
        ({"rank_pattern": {"query": 0}}, "greater than 0"),
        ({"alpha_pattern": {"query": -1.0}}, "greater than 0"),
        ({"alpha": 0}, "greater than 0"),
        ({"alpha": float("inf")}, "finite"),
        ({"layers": "all"}, "valid tuple"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        methods.build({"name": "lora", **options})


def test_float_alpha_survives_saving(cell: MakeCell, tmp_path: Path) -> None:
    chosen = cell("lora", rank=3, alpha=0.7)
    model = chosen.tuned()
    chosen.train(model, steps=1, learning_rate=0.1)
    model.save_pretrained(tmp_path)
    assert torch.equal(chosen.logits(chosen.reloaded(tmp_path)), chosen.logits(model))


RUNS: dict[str, str] = {
    "pissa": "{name: lora, rank: 4, init: pissa}",
    "corda": "{name: lora, rank: 4, init: corda, rank_pattern: {query: 2}}",
    "eva": "{name: lora, rank: 4, init: eva, dropout: 0.1}",
    "lora+": "{name: lora, rank: 4, learning_rate_ratio: 16}",
    "lora-fa": "{name: lora, rank: 4, freeze_a: true}",
    "dora": "{name: dora, rank: 4, init: olora}",
}


def recipe(method: str, bert: Path, files: dict[str, Path]) -> Recipe:
    return Recipe.from_text(f"""
        name: tiny
        model: {{id: {bert}, max_length: 32}}
        task: sequence_classification
        data: {{name: files, train: {files["train"]}, validation: {files["validation"]}}}
        method: {method}
        training: {{epochs: 2, batch_size: 8, learning_rate: 0.003, logging_steps: 1}}
    """)


@pytest.mark.training
@pytest.mark.parametrize("name", RUNS)
def test_run_and_its_resumed_twin_end_in_the_same_adapter(
    name: str, tiny_bert: Path, sentiment_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run` itself checks that the saved adapter, on a fresh base, gives the very logits of the trained model."""
    method = recipe(RUNS[name], tiny_bert, sentiment_files)
    result = run(method, tmp_path / "whole", options=QUIET)
    losses = [point.values["loss"] for point in result.history if "loss" in point.values]
    assert sum(losses[-6:]) < sum(losses[:6])
    step_end = ShowProgress.on_step_end

    def stop(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step_end(self, args, state, control, **kwargs)
        if state.global_step == 8:
            raise InterruptedRunError("in the second of two epochs")

    with monkeypatch.context() as patched:
        patched.setattr(ShowProgress, "on_step_end", stop)
        with pytest.raises(InterruptedRunError):
            run(method, tmp_path / "resumed", options=QUIET)
    assert (tmp_path / "resumed" / "checkpoints" / "checkpoint-6").is_dir()
    resume(tmp_path / "resumed", options=QUIET)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        whole, resumed = (tmp_path / folder / "adapter" / file for folder in ("whole", "resumed"))
        assert whole.read_bytes() == resumed.read_bytes(), file
