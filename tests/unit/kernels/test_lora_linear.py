"""The fused LoRA layer: its formula by gradcheck, peft's results, and peft's layer again afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from peftkit.kernels.lora_linear import OPERATION, FusedLoraLinear, fuse_lora, lora_linear, unfuse_lora

Checkpoint = Callable[[str], Path]


def parts(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("own_input", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_those_of_the_formula(own_input: bool, bias: bool) -> None:
    x, a, b, weight, shift = parts((5, 4), (2, 4), (6, 2), (6, 4), (6,))
    frozen, moved = weight.detach(), shift.detach() if bias else None

    def fused(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return lora_linear(x, 3 * x if own_input else None, frozen, moved, a, b, 0.5)[0]

    assert torch.autograd.gradcheck(fused, (x, a, b), check_undefined_grad=False)
    wanted = x @ frozen.T + 0.5 * ((3 * x if own_input else x) @ a.T) @ b.T + (0.0 if moved is None else moved)
    torch.testing.assert_close(fused(x, a, b), wanted)


def test_torch_can_trace_it() -> None:
    x, a, b, weight = parts((5, 4), (2, 4), (6, 2), (6, 4))
    found = torch.library.opcheck(OPERATION, (x, None, weight.detach(), None, a, b, 0.5))
    assert set(found.values()) == {"SUCCESS"}


def tuned(checkpoint: Checkpoint, **options: Any) -> Any:
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(checkpoint("llama"))
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", r=4, task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    return model.train()


def computed(model: Any) -> dict[str, torch.Tensor]:
    """Logits and gradients, dropout always drawn alike."""
    torch.manual_seed(5)
    model.zero_grad()
    logits = model(input_ids=torch.arange(5, 17).view(2, 6)).logits
    logits.float().square().mean().backward()
    grads = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return {"logits": logits.detach(), **grads}


@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.3}, {"use_rslora": True}, {"lora_alpha": 64}])
def test_models_compute_what_peft_computes(options: dict[str, Any], checkpoint: Checkpoint) -> None:
    model = tuned(checkpoint, **options)
    wanted, keys = computed(model), list(model.state_dict())
    assert fuse_lora(model) == 14
    found = computed(model)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)
    assert list(model.state_dict()) == keys
    unfuse_lora(model)
    assert not any(isinstance(layer, FusedLoraLinear) for layer in model.modules())
    assert all(torch.equal(value, wanted[name]) for name, value in computed(model).items())


@pytest.mark.parametrize("state", ["disabled", "merged", "two adapters", "autocast", "evaluation", "watched"])
def test_whatever_else_a_layer_does_is_peft_s(state: str, checkpoint: Checkpoint) -> None:
    model = tuned(checkpoint)
    ids = torch.arange(5, 11)[None]
    if state == "two adapters":
        model.add_adapter("other", LoraConfig(target_modules="all-linear", r=2))
        model.base_model.set_adapter(["default", "other"])
    if state == "merged":
        model.merge_adapter()
    if state == "evaluation":
        model.eval()

    def logits() -> torch.Tensor:
        torch.manual_seed(5)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=state == "autocast"):
            if state == "disabled":
                with model.disable_adapter():
                    return model(input_ids=ids).logits
            return model(input_ids=ids).logits

    seen: list[int] = []
    if state == "watched":
        factors = [module for name, module in model.named_modules() if name.endswith("lora_A.default")]
        factors[0].register_forward_hook(lambda module, args, output: seen.append(len(output)))
    wanted = logits()
    fuse_lora(model)
    torch.testing.assert_close(logits(), wanted, atol=1e-6, rtol=1e-5)
    assert len(seen) == (2 if state == "watched" else 0)


@pytest.mark.parametrize("options", [{"use_dora": True}])
def test_variants_are_left_to_peft_or_equal(options: dict[str, Any], checkpoint: Checkpoint) -> None:
    model = tuned(checkpoint, **options)
    wanted = computed(model)
    fuse_lora(model)
    found = computed(model)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)
