"""The last block for first tokens only: the same outputs and gradients, and nothing where other tokens are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from peftkit.kernels.lora_linear import fuse_lora
from peftkit.padding_free import PaddingFree, first_tokens

Checkpoint = Callable[[str], Path]
MASK = torch.tensor([[1] * 9, [1] * 3 + [0] * 6, [1] * 5 + [0] * 4, [1] * 5 + [0] * 4, [1] + [0] * 8])


def computed(model: Any, *, choices: int = 1) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Outputs and gradients of the sum of their squares."""
    ids = torch.randint(5, 50, MASK.shape, generator=torch.Generator().manual_seed(3)) * MASK + 1 - MASK
    given = {"input_ids": ids, "attention_mask": MASK}
    if choices > 1:
        given = {name: torch.stack([value] * choices, dim=1) for name, value in given.items()}
    model.zero_grad()
    logits = model(**given).logits
    logits.square().sum().backward()
    grads = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return logits.detach(), grads


def assert_same(model: Any, **options: Any) -> None:
    """With the last block for first tokens and without."""
    wanted, wanted_grads = computed(model, **options)
    engine = PaddingFree(model)
    assert engine.first_problem is None
    found, grads = computed(model, **options)
    assert engine.packed == 1
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)
    assert grads.keys() == wanted_grads.keys()
    for weight, gradient in wanted_grads.items():
        torch.testing.assert_close(grads[weight], gradient, atol=1e-11, rtol=1e-9)
    engine.remove()
    assert torch.equal(computed(model, **options)[0], wanted), "removing it leaves the model as it was"


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_classifiers_are_the_same(name: str, method: str, checkpoint: Checkpoint) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint(name)).double().eval()
    if method == "lora":
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False)).double()
        assert fuse_lora(model) > 0
    assert_same(model)


def test_choices_are_the_same(checkpoint: Checkpoint) -> None:
    assert_same(AutoModelForMultipleChoice.from_pretrained(checkpoint("bert")).double().eval(), choices=2)


@pytest.mark.parametrize("full_rows", [False, True])
def test_the_feed_forward_part_sees_one_token_a_row(checkpoint: Checkpoint, full_rows: bool) -> None:
    """Also where no row has padding, so that there is nothing else to gain."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint("bert")).eval()
    seen: list[tuple[int, ...]] = []
    engine = PaddingFree(model)
    for layer in model.bert.encoder.layer:
        layer.intermediate.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape[:2])))
    mask = torch.ones_like(MASK) if full_rows else MASK
    model(input_ids=torch.full(MASK.shape, 7), attention_mask=mask)
    assert seen == [(1, int(mask.sum())), (1, len(MASK))]
    engine.remove()


def test_other_readers_get_all_tokens(checkpoint: Checkpoint) -> None:
    tagger = AutoModelForTokenClassification.from_pretrained(checkpoint("bert"))
    assert first_tokens(tagger) == "its head reads other tokens than the first"
    decoder = AutoModelForSequenceClassification.from_pretrained(checkpoint("gpt2"), pad_token_id=1)
    assert first_tokens(decoder) == "its head reads other tokens than the first"
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint("bert")).eval()
    assert PaddingFree(model, reads_blocks=True).first is None
    given = {"input_ids": torch.full(MASK.shape, 7), "attention_mask": MASK}
    wanted = model(**given, output_hidden_states=True).hidden_states[-1]
    PaddingFree(model)
    assert torch.equal(model(**given, output_hidden_states=True).hidden_states[-1], wanted)
