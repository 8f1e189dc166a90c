"""What every tuning method promises, on every architecture and storage; a new method is tested by existing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.cells import ARCHITECTURES, BITS, Cell, variants

from peftkit.methods import TuningContext
from peftkit.models import merge_adapter, quiet_libraries

Checkpoint = Callable[[str], Path]

pytestmark = pytest.mark.filterwarnings(
    # libraries' advice on what these tests do on purpose
    "ignore::UserWarning",
    "ignore::FutureWarning",
    "ignore::DeprecationWarning",
)
ONE_ADAPTER = {"adalora", "gradual_unfreezing", "full"}
"""AdaLoRA's allocator serves one adapter at a time; the others are none."""

TOO_SMALL = {"trainable_tokens", "prompt", "p_tuning", "ia3", "layer_norm", "bitfit", "vera"}
"""A few vectors in a model of width 32: they learn, but they cannot learn 60 random tokens by heart."""


@pytest.fixture(params=sorted(variants()))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("storage", BITS)
def test_cell_keeps_its_promises(
    variant: str, architecture: str, storage: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Shape, frozen base, every weight trains, saved equals loaded, disabled equals base."""
    cell = Cell.of(variant, architecture, storage, checkpoint=checkpoint)
    refusal = cell.refusal()
    if refusal is not None:
        assert refusal.rstrip()[-1] not in ".:", refusal
        assert "method" in refusal
        pytest.skip(f"refused: {refusal}")
    base = cell.logits(cell.base())
    model = cell.tuned()
    assert cell.logits(model).shape == base.shape
    frozen = {name: weight.detach().clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    trained = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all(weight.dtype == torch.float32 for weight in trained.values())
    _every_weight_gets_a_gradient(cell, model)
    cell.train(model, steps=6, learning_rate=1e-2)
    now = dict(model.named_parameters())
    assert [name for name in frozen if not torch.equal(frozen[name], now[name])] == []
    assert [name for name, before in trained.items() if torch.equal(before, now[name]) and before.numel() > 1] == []
    cell.method.finish(model)
    after = cell.logits(model)
    assert not torch.equal(after, base)
    with quiet_libraries():
        model.save_pretrained(tmp_path, **({"save_embedding_layers": False} if cell.is_adapter else {}))
    assert torch.equal(cell.logits(cell.reloaded(tmp_path)), after), "saved is not loaded"
    if cell.is_adapter:
        with model.disable_adapter():
            assert torch.allclose(cell.logits(model), base, atol=2e-6), "disabled is not the base"
    if cell.method.mergeable:
        _merged_equals_unmerged(cell, tmp_path)


def _every_weight_gets_a_gradient(cell: Cell, model: Any) -> None:
    cell.loss(model, cell.inputs()).backward()
    without = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert without == []
    model.zero_grad()


def _merged_equals_unmerged(cell: Cell, folder: Path) -> None:
    """On the full-precision base, also where the adapter was trained on a quantized one."""
    unmerged = cell.logits(cell.reloaded(folder, storage="fp32"))
    merged = cell.logits(merge_adapter(cell.reloaded(folder, storage="fp32")))
    tolerance = 5e-4 if cell.variant == "fourierft" else 1e-5  # its update is some 17 times as large as the weights
    assert torch.allclose(merged, unmerged, atol=tolerance * max(1.0, unmerged.abs().max().item()))


def test_eight_rows_are_learnt_by_heart(variant: str, architecture: str, checkpoint: Checkpoint) -> None:
    cell = Cell.of(variant, architecture, "fp32", checkpoint=checkpoint)
    if refusal := cell.refusal():
        pytest.skip(f"refused: {refusal}")
    losses = cell.train(cell.tuned(), steps=60, learning_rate=1e-2, rows=8)
    wanted = 0.99 if variant in TOO_SMALL else 0.85
    assert min(losses) < wanted * losses[0], f"{losses[0]:.3f} -> {min(losses):.3f}"


def test_gradient_checkpointing_changes_nothing(variant: str, architecture: str, checkpoint: Checkpoint) -> None:
    cell = Cell.of(variant, architecture, "fp32", checkpoint=checkpoint)
    if refusal := cell.refusal():
        pytest.skip(f"refused: {refusal}")
    context = TuningContext(cell.architecture.task_type, cell.architecture.head, 20, gradient_checkpointing=True)
    if not cell.method.allows_gradient_checkpointing:
        problem = cell.method.problem(cell.skeleton(), context)
        assert problem is not None
        assert "training.gradient_checkpointing" in problem
        return
    model = cell.tuned().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    plain = _gradients(cell, model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    again = _gradients(cell, model)
    assert plain
    for name, gradient in plain.items():
        assert torch.allclose(again[name], gradient, rtol=1e-4, atol=1e-6), name


def _gradients(cell: Cell, model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    cell.loss(model, cell.inputs()).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_a_second_adapter_leaves_the_first_alone(variant: str, checkpoint: Checkpoint) -> None:
    if variant in ONE_ADAPTER:
        pytest.skip("takes one adapter only, as the table above says")
    cell = Cell.of(variant, "llama" if variant != "bitfit" else "gpt2", "fp32", checkpoint=checkpoint)
    if cell.refusal() is not None:
        cell = Cell.of(variant, "bert_sequence", "fp32" if variant != "lora loftq" else "nf4", checkpoint=checkpoint)
    model = cell.tuned()
    cell.train(model, steps=2, learning_rate=3e-2)
    first = cell.logits(model)
    with quiet_libraries():
        model.add_adapter("second", model.peft_config["default"])
    model.set_adapter("second")
    model.eval()
    cell.train(model, steps=3, learning_rate=3e-2)  # a step more, or it would only repeat the first
    assert not torch.equal(cell.logits(model), first)
    model.set_adapter("default")
    assert torch.equal(cell.logits(model), first)
