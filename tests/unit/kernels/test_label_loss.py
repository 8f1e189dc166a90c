"""The loss at labels, in chunks: plain autograd's in float64, and in float32 no further from it than the plain path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from peftkit.kernels import label_loss as kernel
from peftkit.kernels.label_loss import HeadInput, label_loss, label_scores
from peftkit.losses import losses


def problem(tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Linear]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, 8, generator=generator, dtype=dtype)
    head = torch.nn.Linear(8, 50, dtype=dtype)
    with torch.no_grad():
        for weight in head.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=dtype))
    return states.requires_grad_(), torch.randint(0, 50, (tokens,), generator=generator), head


@pytest.mark.parametrize("name", ["cross_entropy", "in place", "focal", "smoothed", "dice"])
@pytest.mark.parametrize("tokens", [1, 7, 12])
@pytest.mark.parametrize("trains", [False, True])
def test_loss_and_gradients_are_plain_autograds(
    name: str, tokens: int, trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "CHUNK", 250)  # five tokens at a time
    divisor = torch.tensor(3) if name == "in place" else None
    build: Any = {"smoothed": {"name": "cross_entropy", "label_smoothing": 0.1}, "in place": "cross_entropy"}
    criterion = losses.build(build.get(name, name))
    criterion = criterion.fitted([], classes=50)
    states, labels, head = problem(tokens, torch.float32)
    head.requires_grad_(trains)
    found = label_loss(
        states, labels, head, lambda logits, wanted: criterion.compute(logits, wanted, 3), divisor=divisor
    )
    (2 * found).backward()
    ours = [states.grad, *(weight.grad for weight in head.parameters())]
    states.grad = None
    for weight in head.parameters():
        weight.grad = None
    plain = criterion.compute(head(states), labels, 3)
    (2 * plain).backward()
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-6)
    for one, other in zip(ours, [states.grad, *(weight.grad for weight in head.parameters())], strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("tokens", [0, 1, 7, 12])
def test_scores_in_chunks_are_those_of_all_logits(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "CHUNK", 250)
    criterion = losses.build("focal").fitted([], classes=50)
    states, labels, head = problem(tokens, torch.float32)
    logits = head(states)
    labels[: tokens // 2] = logits.argmax(-1)[: tokens // 2]
    loss, lost, right = label_scores(states, labels, head, lambda part, wanted: criterion.compute(part, wanted, 3))
    torch.testing.assert_close(loss, criterion.compute(logits, labels, 3).detach(), atol=1e-6, rtol=1e-6)
    by_hand = logits.logsumexp(-1) - logits[torch.arange(tokens), labels]
    torch.testing.assert_close(lost, by_hand.detach(), atol=1e-6, rtol=1e-5)
    assert right.tolist() == [True] * (tokens // 2) + right.tolist()[tokens // 2 :]
    assert right.dtype == torch.bool
    assert len(right) == tokens


def test_no_label_is_no_loss_and_no_gradient() -> None:
    states, _, head = problem(3, torch.float64)
    found = label_loss(states[:0], torch.zeros(0, dtype=torch.long), head, lambda logits, wanted: logits.sum())
    found.backward()
    assert found.item() == 0.0
    assert states.grad is not None
    assert not states.grad.any()


def test_logits_of_all_tokens_never_exist() -> None:
    states, labels, head = problem(12, torch.float32)
    held: list[int] = []
    head.register_forward_hook(lambda module, args, output: held.append(len(output)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "CHUNK", 250)
        label_loss(states, labels, head, lambda logits, wanted: logits.logsumexp(-1).sum()).backward()
    assert max(held) == 5
    assert sum(held) == 1 + 12


def test_heads_are_watched_and_what_follows_them_is_noticed(checkpoint: Callable[[str], Path]) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint("llama")).eval()
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    whole = model(ids).logits
    watched = HeadInput(model.get_output_embeddings())
    last = model(ids).logits
    assert torch.equal(last, whole[:, -1:])
    assert watched.states is not None
    assert torch.equal(model.lm_head(watched.states.flatten(0, 1)).view_as(whole), whole)
    assert watched.explains(last)
    assert not watched.explains(30 * torch.tanh(last / 30)), "soft-capped logits are not the head's"
    watched.remove()
    assert torch.equal(model(ids).logits, whole)


def test_it_is_closer_to_float64_than_plain_float32() -> None:
    """A vocabulary of 49,152, as SmolLM2's."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(64, 32, generator=generator)
    head = torch.nn.Linear(32, 49_152, bias=False)
    labels = torch.randint(0, 49_152, (64,), generator=generator)
    criterion = losses.build("cross_entropy")
    exact = criterion.compute((states.double() @ head.weight.double().T), labels, 64).item()
    plain = criterion.compute(head(states), labels, 64).item()
    ours = label_loss(states, labels, head, lambda logits, wanted: criterion.compute(logits, wanted, 64)).item()
    assert abs(ours - exact) <= abs(plain - exact) + 1e-6
