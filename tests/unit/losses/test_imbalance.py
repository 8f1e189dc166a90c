"""Class weights and the losses for rare or ordered classes, against their formulas in plain Python."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.errors import DataError, RecipeError
from peftkit.losses import losses
from peftkit.recipe import Recipe
from peftkit.training import RunOptions, run

ROWS, CLASSES = 23, 4
WEIGHTS = (0.5, 1.0, 2.0, 4.0)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(1)) * 2


@pytest.fixture
def classes() -> torch.Tensor:
    return torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def flags() -> torch.Tensor:
    return torch.randint(2, (ROWS, CLASSES), generator=torch.Generator().manual_seed(3)).float()


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def one(name: str, p: float, y: float, p_right: float, options: dict[str, Any]) -> float:
    """The loss of one class of one row."""
    s = 1.0
    if name == "tversky":
        a, b = options.get("false_positives", 0.5), options.get("false_negatives", 0.5)
        return 1 - (p * y + s) / (p * y + a * p * (1 - y) + b * (1 - p) * y + s)
    if name == "dice":
        q = (1 - p) ** options.get("decay", 1.0) * p
        return 1 - (2 * q * y + s) / (q + y + s)
    gamma = options.get("gamma", 2.0)
    right = p if y else 1 - p
    return -((1 - right) ** gamma) * math.log(right)


def by_class(name: str, row: list[float], label: int, options: dict[str, Any]) -> float:
    """The loss of one row that has one class."""
    p = softmax(row)
    weights = options.get("class_weights", (1.0,) * CLASSES)
    if name == "cross_entropy":
        return -weights[label] * math.log(p[label])
    if name == "focal":
        return weights[label] * one(name, p[label], 1.0, p[label], options)
    if name == "earth_mover":
        sums = [sum(p[: k + 1]) - (k >= label) for k in range(CLASSES)]
        return weights[label] * sum(apart**2 for apart in sums)
    terms = [weights[k] * one(name, p[k], float(k == label), p[label], options) for k in range(CLASSES)]
    return sum(terms) / CLASSES


CASES: list[tuple[str, dict[str, Any]]] = [
    ("cross_entropy", {"class_weights": WEIGHTS}),
    ("focal", {}),
    ("focal", {"gamma": 0.5, "class_weights": WEIGHTS}),
    ("tversky", {}),
    ("tversky", {"false_positives": 0.3, "false_negatives": 0.7, "class_weights": WEIGHTS}),
    ("dice", {}),
    ("dice", {"decay": 0.0, "class_weights": WEIGHTS}),
    ("earth_mover", {}),
    ("earth_mover", {"class_weights": WEIGHTS}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_one_class_per_row_follows_the_formula(
    logits: torch.Tensor, classes: torch.Tensor, name: str, options: dict[str, Any]
) -> None:
    loss = losses.build({"name": name, **options})
    rows = logits.double().tolist()
    expected = sum(by_class(name, row, label, options) for row, label in zip(rows, classes.tolist(), strict=True))
    assert loss.compute(logits, classes, None).item() == pytest.approx(expected / ROWS, rel=1e-5)
    assert loss.compute(logits, classes, 7).item() == pytest.approx(expected / 7, rel=1e-5)


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] in ("focal", "tversky", "dice")])
def test_flags_follow_the_formula(
    logits: torch.Tensor, flags: torch.Tensor, name: str, options: dict[str, Any]
) -> None:
    """Each label is a yes or no of its own; focal's weights count for a yes only."""
    weights = options.get("class_weights", (1.0,) * CLASSES)
    expected = 0.0
    for row, marks in zip(logits.double().tolist(), flags.tolist(), strict=True):
        for value, y, weight in zip(row, marks, weights, strict=True):
            factor = weight if y or name != "focal" else 1.0
            expected += factor * one(name, sigmoid(value), y, 0.0, options)
    loss = losses.build({"name": name, **options}).compute(logits, flags, None)
    assert loss.item() == pytest.approx(expected / (ROWS * CLASSES), rel=1e-5)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_micro_batches_add_up_and_unlabelled_positions_do_not_count(
    logits: torch.Tensor, classes: torch.Tensor, name: str, options: dict[str, Any]
) -> None:
    loss = losses.build({"name": name, **options})
    whole = loss.compute(logits, classes, ROWS)
    parts = [loss.compute(logits[at], classes[at], ROWS) for at in (slice(0, 5), slice(5, ROWS))]
    torch.testing.assert_close(sum(parts), whole)
    tokens = torch.stack([logits, logits.flip(0)], dim=1)
    labels = torch.stack([classes, torch.full_like(classes, -100)], dim=1)
    torch.testing.assert_close(loss.compute(tokens, labels, None), loss.compute(logits, classes, None))
    empty = torch.full_like(classes, -100)
    assert loss.compute(logits, empty, None).item() == 0.0


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradients_stay_finite_where_the_answer_is_certain(name: str, options: dict[str, Any]) -> None:
    logits = torch.tensor([[90.0, -90.0, 0.0, 0.0], [-90.0, 90.0, 0.0, 0.0]], requires_grad=True)
    losses.build({"name": name, **options}).compute(logits, torch.tensor([0, 0]), None).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_focal_without_gamma_is_cross_entropy(logits: torch.Tensor, classes: torch.Tensor) -> None:
    focal = losses.build({"name": "focal", "gamma": 0.0}).compute(logits, classes, None)
    torch.testing.assert_close(focal, losses.build("cross_entropy").compute(logits, classes, None))


def test_far_guesses_cost_more_than_near_ones() -> None:
    loss = losses.build("earth_mover")
    guesses = 9.0 * torch.eye(CLASSES)
    costs = [loss.compute(guesses[k : k + 1], torch.tensor([0]), None).item() for k in range(CLASSES)]
    assert costs == sorted(costs)
    assert costs[-1] > 2.9
    assert costs[0] < 0.01


def test_balanced_weights_come_from_the_counts() -> None:
    loss: Any = losses.build({"name": "focal", "class_weights": "balanced"})
    assert loss.fitted([0, 0, 0, 1], classes=2).class_weights == pytest.approx((4 / 6, 2.0))
    assert loss.fitted([[0, -100, 0], [1, 0]], classes=2).class_weights == pytest.approx((4 / 6, 2.0))
    assert loss.fitted([[1.0, 0.0], [1.0, 1.0]], classes=2).class_weights == pytest.approx((3 / 4, 1.5))
    given: Any = losses.build({"name": "focal", "class_weights": [1, 3]})
    assert given.fitted([0], classes=2) is given


@pytest.mark.parametrize(
    ("spec", "labels", "kind", "message"),
    [
        ({"name": "focal", "class_weights": "balanced"}, [0, 0], DataError, "class 1 has no training rows"),
        ({"name": "focal", "class_weights": [1.0]}, [0, 1], RecipeError, "has 1 numbers, the task has 2 classes"),
    ],
)
def test_weights_that_do_not_fit_the_labels_are_refused(spec: Any, labels: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        losses.build(spec).fitted(labels, classes=2)


@pytest.mark.parametrize(
    ("part", "problem_type", "message"),
    [
        ({"loss": "earth_mover"}, "multi_label", "loss: 'earth_mover' works with classes, .* are flags; remove it"),
        ({"loss": "cross_entropy"}, "regression", "loss: 'cross_entropy' works with classes, .* are numbers"),
        ({"loss": "mean_squared_error"}, "single_label", "'mean_squared_error' works with numbers, .* are classes"),
        ({"loss": "binary_cross_entropy"}, "single_label", "works with flags, and the labels of task 'sequence_"),
        ({"loss": "focal"}, "regression", "'focal' works with classes or flags, .* are numbers"),
        ({"regularizers": ["fgm", "r_drop"]}, "regression", "regularizers: 'r_drop' works with classes, "),
    ],
)
def test_part_that_does_not_fit_the_labels_is_refused(part: Any, problem_type: str, message: str) -> None:
    values = {
        "model": "m",
        "task": {"name": "sequence_classification", "problem_type": problem_type},
        "data": {"name": "files", "train": "a.csv"},
        "method": "lora",
    }
    with pytest.raises(RecipeError, match=message):
        Recipe.from_values(values | part, origin="test")


@pytest.mark.training
def test_run_writes_the_weights_it_has_computed(
    tiny_bert: Path, sentiment_files: dict[str, Path], tmp_path: Path
) -> None:
    """So that running the resolved recipe again, on other rows too, is the same run."""
    recipe = Recipe.from_values(
        {
            "name": "weights",
            "model": {"id": str(tiny_bert), "max_length": 32},
            "task": "sequence_classification",
            "data": {"name": "files"} | {split: str(path) for split, path in sentiment_files.items()},
            "method": "lora",
            "loss": {"name": "focal", "class_weights": "balanced"},
            "training": {"epochs": 1, "batch_size": 8},
        },
        origin="test",
    )
    result = run(recipe, tmp_path / "run", options=RunOptions(show_progress=False))
    weights = result.recipe["loss"]["class_weights"]
    labels = [line.rsplit(",", 1)[1] for line in sentiment_files["train"].read_text().strip().splitlines()[1:]]
    assert weights == pytest.approx([24 / labels.count(name) for name in ("negative", "positive")])
