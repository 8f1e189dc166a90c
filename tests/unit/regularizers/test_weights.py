"""Mixout, averages of weights, L2-SP, and the substitution of weights, against the papers' formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftkit.regularizers import AtWork, regularizers
from peftkit.regularizers.substitution import substituted


def test_substituted_weights_are_computed_with_and_put_back(model: Any, batch: dict[str, torch.Tensor]) -> None:
    weight = model.classifier.weight
    before = model(**batch).logits.detach()
    with substituted(model, {weight: torch.zeros_like(weight)}):
        inside = model(**batch).logits
        assert torch.equal(inside, model.classifier.bias.expand_as(inside))
    assert model.classifier.weight is weight
    assert torch.equal(model(**batch).logits, before)


def test_substituted_weights_give_their_gradients_to_what_they_are_made_of(
    model: Any, batch: dict[str, torch.Tensor]
) -> None:
    weight = model.classifier.weight
    (plain,) = torch.autograd.grad(model(**batch).logits.sum(), weight)
    with substituted(model, {weight: 3 * weight}):
        loss = model(**batch).logits.sum()
    (found,) = torch.autograd.grad(loss, weight)  # also after the weights are back in place
    torch.testing.assert_close(found, 3 * plain)


def test_tied_weights_are_substituted_at_each_place() -> None:
    from torch import nn

    tied = nn.ModuleDict({"one": nn.Linear(2, 2, bias=False), "two": nn.Linear(2, 2, bias=False)})
    tied["two"].weight = tied["one"].weight
    with substituted(tied, {tied["one"].weight: torch.zeros(2, 2)}):  # type: ignore[arg-type] # any module does
        assert tied["two"](torch.ones(2)).abs().sum() == 0
    assert tied["two"].weight is tied["one"].weight


def mixout_by_hand(weight: torch.Tensor, start: torch.Tensor, kept: torch.Tensor, p: float) -> torch.Tensor:
    """Lee et al. 2020, equation 5: ((1 - M) u + M w - p u) / (1 - p)."""
    return ((1 - kept) * start + kept * weight - p * start) / (1 - p)


def test_mixout_mixes_weights_with_their_start(model: Any, batch: dict[str, torch.Tensor]) -> None:
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    start = model.classifier.weight.detach().clone()
    regularizers.build({"name": "mixout", "probability": 0.3}).start(model)
    features = model.bert(**batch).pooler_output
    with torch.no_grad():
        model.classifier.weight += 0.5
    trained = model.classifier.weight.detach().clone()
    torch.manual_seed(3)
    logits = model(**batch).logits
    torch.manual_seed(3)
    kept = torch.empty_like(start).bernoulli_(0.7)
    assert 0 < kept.mean() < 1
    bias = model.classifier.bias
    expected = features @ mixout_by_hand(trained, start, kept, 0.3).T + bias
    torch.testing.assert_close(logits, expected.detach().requires_grad_(), check_device=False)
    logits.sum().backward()
    torch.testing.assert_close(model.classifier.weight.grad, kept / 0.7 * features.sum(0))
    assert torch.equal(model.classifier.weight, trained), "the weights themselves are not mixed"
    model.eval()
    torch.testing.assert_close(model(**batch).logits, features @ trained.T + bias)


def test_mixout_leaves_weights_at_their_start_alone(model: Any, batch: dict[str, torch.Tensor]) -> None:
    before = model(**batch).logits
    regularizers.build("mixout").start(model)
    assert torch.equal(model(**batch).logits, before)


def test_mixout_puts_weights_back_after_a_pass_that_broke_off(model: Any) -> None:
    weight = model.classifier.weight
    regularizers.build("mixout").start(model)
    with pytest.raises(ValueError, match="specify exactly one of input_ids"):
        model()
    assert model.classifier.weight is weight


def walked(model: Any, part: AtWork, points: list[float]) -> list[float | None]:
    """The average of one weight after each of several steps that set it."""
    model.classifier.bias.requires_grad_(True)
    found: list[float | None] = []
    for step, point in enumerate(points, 1):
        with torch.no_grad():
            model.classifier.bias.fill_(point)
        part.after_step(step, len(points))
        averages = part.averages()
        found.append(averages[model.classifier.bias][0].item() if averages else None)
    return found


def test_ema_is_the_papers_corrected_average(model: Any) -> None:
    """Kingma & Ba 2015, section 7.2: v_t = b v_(t-1) + (1 - b) w_t from 0, divided by 1 - b^t."""
    points = [1.0, 5.0, -2.0, 4.0]
    expected, moving = [], 0.0
    for step, point in enumerate(points, 1):
        moving = 0.9 * moving + 0.1 * point
        expected.append(moving / (1 - 0.9**step))
    found = walked(model, regularizers.build({"name": "ema", "decay": 0.9}).start(model), points)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start_share": 0.5}, [None, None, None, None, 16.0, 24.0, 37.333333, 60.0]),
        ({"start_share": 0.5, "every": 3}, [None, None, None, None, 16.0, 16.0, 16.0, 72.0]),
        ({"start_share": 0.9}, [None] * 7 + [128.0]),
        ({"start_share": 0.0, "every": 8}, [1.0] * 8),
    ],
)
def test_swa_is_the_equal_average_of_the_last_part(
    model: Any, options: dict[str, Any], expected: list[float | None]
) -> None:
    """Izmailov et al. 2018, algorithm 1: w_swa = (w_swa n + w) / (n + 1), at every c-th step."""
    points = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
    found = walked(model, regularizers.build({"name": "swa", **options}).start(model), points)
    assert found == [value if value is None else pytest.approx(value, rel=1e-5) for value in expected]


@pytest.mark.parametrize("name", ["ema", "swa", "smart"])
def test_state_is_taken_up(model: Any, name: str) -> None:
    options = {"start_share": 0.0} if name == "swa" else {}
    parts = [regularizers.build({"name": name, **options}).start(model) for _ in range(2)]
    walked(model, parts[0], [1.0, 5.0, 3.0])
    parts[1].restore({key: tensor.clone() for key, tensor in parts[0].state().items()})
    for part in parts:
        part.after_step(3, 3)
    states = [part.state() for part in parts]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert states[0]["count"] == 4


def test_l2_sp_is_half_the_squared_distance_from_the_start(model: Any) -> None:
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    at_work = regularizers.build({"name": "l2_sp", "strength": 0.3}).start(model)
    assert at_work.penalty().item() == 0.0  # type: ignore[union-attr] # there is one
    with torch.no_grad():
        model.classifier.weight += 0.5
        model.classifier.bias -= 0.25
        model.bert.pooler.dense.weight += 1.0  # frozen, so it does not count
    expected = 0.3 / 2 * (64 * 0.5**2 + 2 * 0.25**2)
    assert at_work.penalty().item() == pytest.approx(expected, rel=1e-5)  # type: ignore[union-attr] # there is one
