"""Losses against formulas written out in float64 and against torch."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from peftkit.errors import UnknownComponentError
from peftkit.losses import Loss, losses

# The losses compute in float32, the references here in float64: 1e-6 is a few rounding errors of values near one.
CLOSE = {"rtol": 2e-6, "atol": 1e-6}
ROWS, CLASSES = 41, 5


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(1)) * 3


@pytest.fixture
def classes() -> torch.Tensor:
    return torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def flags() -> torch.Tensor:
    return torch.randint(2, (ROWS, CLASSES), generator=torch.Generator().manual_seed(3)).float()


def smoothed(logits: torch.Tensor, labels: torch.Tensor, share: float) -> float:
    """-sum_k q(k) log p(k) with q(k) = (1 - e) [k = label] + e / K, summed over rows, in plain Python."""
    total = 0.0
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        norm = math.log(sum(math.exp(value) for value in row))
        for k, value in enumerate(row):
            wanted = (1 - share) * (k == label) + share / len(row)
            total -= wanted * (value - norm)
    return total


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
def test_cross_entropy_follows_the_formula(logits: torch.Tensor, classes: torch.Tensor, share: float) -> None:
    loss = losses.build({"name": "cross_entropy", "label_smoothing": share}).compute(logits, classes, None)
    expected = torch.tensor(smoothed(logits, classes, share) / ROWS)
    torch.testing.assert_close(loss, expected, **CLOSE)


def test_cross_entropy_by_hand() -> None:
    # p = (1/4, 3/4) for logits (0, log 3)
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    labels = torch.tensor([0, 1])
    loss = losses.build("cross_entropy").compute(logits, labels, None)
    torch.testing.assert_close(loss, torch.tensor((math.log(4) + math.log(4 / 3)) / 2), **CLOSE)


def test_binary_cross_entropy_by_hand_and_against_torch(logits: torch.Tensor, flags: torch.Tensor) -> None:
    loss = losses.build("binary_cross_entropy")
    # s(log 3) = 3/4: -log(3/4) for a set flag, -log(1/4) for an unset one
    by_hand = loss.compute(torch.tensor([[math.log(3), math.log(3)]]), torch.tensor([[1.0, 0.0]]), None)
    torch.testing.assert_close(by_hand, torch.tensor((math.log(4 / 3) + math.log(4)) / 2), **CLOSE)
    p = torch.sigmoid(logits.double())
    expected = -(flags * p.log() + (1 - flags) * (1 - p).log()).mean()
    torch.testing.assert_close(loss.compute(logits, flags, None), expected.float(), **CLOSE)


def test_binary_cross_entropy_takes_integer_flags(logits: torch.Tensor, flags: torch.Tensor) -> None:
    loss = losses.build("binary_cross_entropy")
    torch.testing.assert_close(loss.compute(logits, flags.long(), None), loss.compute(logits, flags, None))


def test_mean_squared_error_by_hand() -> None:
    loss = losses.build("mean_squared_error")
    column = torch.tensor([[1.0], [2.0], [-4.0]])
    assert loss.compute(column, torch.tensor([1.0, 0.0, -1.0]), None).item() == pytest.approx((0 + 4 + 9) / 3)
    assert loss.compute(column, torch.tensor([[1.0], [0.0], [-1.0]]), None).item() == pytest.approx(13 / 3)
    assert loss.compute(column, torch.tensor([1, 0, -1]), None).item() == pytest.approx(13 / 3)


def test_mean_squared_error_does_not_broadcast() -> None:
    # (3, 1) - (3,) would silently be a (3, 3) table of differences
    with pytest.raises(RuntimeError, match="shape"):
        losses.build("mean_squared_error").compute(torch.zeros(3, 2), torch.zeros(3), None)


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "mean_squared_error"])
@pytest.mark.parametrize("sizes", [(41,), (40, 1), (13, 13, 13, 2)])
def test_micro_batches_give_loss_and_gradient_of_one_batch(
    name: str, sizes: tuple[int, ...], classes: torch.Tensor, flags: torch.Tensor
) -> None:
    inputs = torch.randn(ROWS, 7, generator=torch.Generator().manual_seed(4))
    labels = {"cross_entropy": classes, "binary_cross_entropy": flags, "mean_squared_error": classes.float()}[name]
    width = 1 if name == "mean_squared_error" else CLASSES
    weight = torch.randn(7, width, generator=torch.Generator().manual_seed(5), requires_grad=True)
    loss = losses.build(name)
    whole = loss.compute(inputs @ weight, labels, None)
    (expected,) = torch.autograd.grad(whole, weight)
    parts = [
        loss.compute(batch @ weight, part, labels.numel())
        for batch, part in zip(inputs.split(sizes), labels.split(sizes), strict=True)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole, **CLOSE)
    (gradient,) = torch.autograd.grad(torch.stack(parts).sum(), weight)
    torch.testing.assert_close(gradient, expected, **CLOSE)


def test_num_items_may_be_a_tensor(logits: torch.Tensor, classes: torch.Tensor) -> None:
    loss = losses.build("cross_entropy")
    torch.testing.assert_close(
        loss.compute(logits, classes, torch.tensor(100)), loss.compute(logits, classes, None) * ROWS / 100, **CLOSE
    )


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_cross_entropy_ignores_minus_100(logits: torch.Tensor, classes: torch.Tensor, share: float) -> None:
    loss = losses.build({"name": "cross_entropy", "label_smoothing": share})
    masked = classes.clone()
    masked[::3] = -100
    kept = masked != -100
    expected = loss.compute(logits[kept], classes[kept], None)
    torch.testing.assert_close(loss.compute(logits, masked, None), expected, **CLOSE)
    torch.testing.assert_close(loss.compute(logits, masked, int(kept.sum())), expected, **CLOSE)


def test_cross_entropy_of_no_label_is_zero_with_zero_gradient(logits: torch.Tensor) -> None:
    logits.requires_grad_()
    loss = losses.build("cross_entropy").compute(logits, torch.full((ROWS,), -100), None)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "mean_squared_error"])
def test_half_precision_logits_are_summed_in_float32(name: str, dtype: torch.dtype, flags: torch.Tensor) -> None:
    # The sum over 4000 rows is far outside what 16 bits can hold exactly; float16 overflows at 65504.
    logits = (torch.randn(4000, 2, generator=torch.Generator().manual_seed(6)) * 8).to(dtype)
    labels = {
        "cross_entropy": torch.zeros(4000, dtype=torch.long),
        "binary_cross_entropy": torch.ones(4000, 2),
        "mean_squared_error": torch.full((4000, 2), 5.0),
    }[name]
    wide = logits.double()
    expected = {
        "cross_entropy": lambda: functional.cross_entropy(wide, labels),
        "binary_cross_entropy": lambda: functional.softplus(-wide).mean(),
        "mean_squared_error": lambda: (wide - 5).square().mean(),
    }[name]()
    loss = losses.build(name).compute(logits, labels, None)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_extreme_logits_stay_finite() -> None:
    far = torch.tensor([[1000.0, -1000.0], [-1000.0, 1000.0]])
    assert losses.build("cross_entropy").compute(far, torch.tensor([0, 0]), None).item() == pytest.approx(1000)
    flags = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert losses.build("binary_cross_entropy").compute(far, flags, None).item() == pytest.approx(500)


def test_non_contiguous_logits(logits: torch.Tensor, classes: torch.Tensor) -> None:
    turned = logits.t().contiguous().t()
    assert not turned.is_contiguous()
    loss = losses.build("cross_entropy")
    torch.testing.assert_close(loss.compute(turned, classes, None), loss.compute(logits, classes, None))


def test_nan_logits_are_not_hidden(logits: torch.Tensor, classes: torch.Tensor) -> None:
    logits[3, 2] = math.nan
    assert math.isnan(losses.build("cross_entropy").compute(logits, classes, None).item())


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_label_smoothing_has_its_range(share: float) -> None:
    with pytest.raises(ValidationError, match="label_smoothing"):
        losses.build({"name": "cross_entropy", "label_smoothing": share})


def test_every_loss_is_a_known_loss_with_a_scalar_value() -> None:
    assert {"cross_entropy", "binary_cross_entropy", "mean_squared_error"} <= set(losses.names())
    assert all(issubclass(losses.get(name), Loss) for name in losses.loaded_names())


def test_unknown_loss_suggests_the_nearest() -> None:
    with pytest.raises(UnknownComponentError, match="unknown loss 'cross_entrpy'; did you mean 'cross_entropy'"):
        losses.build("cross_entrpy")
