"""Recomputation changes no number, and keeps less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from peftkit.kernels.recompute import Recomputation, pays_back
from peftkit.layers.blocks import block_lists
from peftkit.padding_free import PaddingFree, padding_free_problem

Checkpoint = Callable[[str], Path]
AUTO = {"llama": "AutoModelForCausalLM", "t5": "AutoModelForSeq2SeqLM", "bert": "AutoModelForSequenceClassification"}
MASK = torch.tensor([[1] * 7, [1] * 3 + [0] * 4, [1] * 5 + [0] * 2])


def made(name: str, checkpoint: Checkpoint) -> tuple[Any, list[torch.nn.Module]]:
    model = getattr(transformers, AUTO[name]).from_pretrained(checkpoint(name)).train()
    return model, [block for stack in block_lists(model).values() for block in stack]


def computed(model: Any) -> tuple[dict[str, torch.Tensor], int]:
    """Logits and gradients, dropout drawn alike; numbers that were kept for the backward pass."""
    torch.manual_seed(5)
    model.zero_grad()
    given = {"input_ids": torch.randint(5, 40, MASK.shape, generator=torch.Generator().manual_seed(2))}
    given |= {"attention_mask": MASK} | ({"decoder_input_ids": MASK + 5} if model.config.is_encoder_decoder else {})
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(**given).logits
    logits.float().square().mean().backward()
    weights = sum(weight.untyped_storage().nbytes() for weight in model.parameters())
    grads = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return {"logits": logits.detach(), **grads}, sum(kept.values()) - weights


@pytest.mark.parametrize(("name", "packed"), [(name, False) for name in AUTO] + [("llama", True), ("bert", True)])
def test_numbers_are_the_same(name: str, packed: bool, checkpoint: Checkpoint) -> None:
    model, blocks = made(name, checkpoint)
    assert padding_free_problem(model) is None or not packed
    packing = PaddingFree(model) if packed else None
    wanted, _ = computed(model)
    engine = Recomputation(model, blocks)
    found, _ = computed(model)
    assert found.keys() == wanted.keys()
    for part, value in wanted.items():
        assert torch.equal(found[part], value), part
    engine.remove()
    again, _ = computed(model)
    assert all(torch.equal(again[part], value) for part, value in wanted.items())
    if packing is not None:
        packing.remove()
    assert all("forward" not in vars(block) for block in blocks)
    assert model.config.use_cache or name == "bert"


def test_blocks_keep_less_outside_of_what_is_recomputed(checkpoint: Checkpoint) -> None:
    model, blocks = made("llama", checkpoint)
    _, before = computed(model)
    Recomputation(model, blocks)
    _, after = computed(model)
    assert after < before


def test_it_is_for_norms_that_are_written_out(checkpoint: Checkpoint) -> None:
    assert {name: pays_back(made(name, checkpoint)[1]) for name in AUTO} == {"llama": True, "t5": True, "bert": False}


def test_nothing_is_kept_where_no_gradient_is_asked_for(checkpoint: Checkpoint) -> None:
    model, blocks = made("llama", checkpoint)
    model.eval()
    with torch.no_grad():
        wanted = model(input_ids=MASK + 5).logits
        Recomputation(model, blocks)
        assert torch.equal(model(input_ids=MASK + 5).logits, wanted)
