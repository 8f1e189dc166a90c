"""The contrast between classes: equation 3 of the paper, written out; what reads it, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.errors import CapabilityError
from peftkit.regularizers import Pass, regularizers
from peftkit.regularizers.supervised_contrastive import contrast_of
from peftkit.training import RunOptions, run


def written_out(vectors: list[list[float]], classes: list[int], temperature: float) -> float:
    """Gunel et al. 2021, equation 3, row by row."""
    unit = [[value / math.hypot(*row) for value in row] for row in vectors]
    total = 0.0
    for i, one in enumerate(unit):
        weight = {
            k: math.exp(sum(a * b for a, b in zip(one, unit[k], strict=True)) / temperature)
            for k in range(len(unit))
            if k != i
        }
        mates = [j for j in weight if classes[j] == classes[i]]
        total -= sum(math.log(weight[j] / sum(weight.values())) for j in mates) / max(len(mates), 1)
    return total


@pytest.mark.parametrize("classes", [[0, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 2, 2, 3]])
def test_contrast_is_the_papers(classes: list[int]) -> None:
    vectors = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    found = contrast_of(vectors, torch.tensor(classes), 0.3)
    assert found.item() == pytest.approx(written_out(vectors.tolist(), classes, 0.3), abs=1e-5)


def test_rows_alone_in_their_class_have_no_contrast_and_no_broken_gradient() -> None:
    vectors = torch.randn(3, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    contrast = contrast_of(vectors, torch.tensor([0, 1, 2]), 0.3)
    contrast.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
    assert contrast.item() == 0.0
    assert torch.equal(vectors.grad, torch.zeros_like(vectors))  # type: ignore[arg-type] # it is there


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "t5"])
def test_loss_is_the_weighted_mean_over_what_the_head_reads(checkpoint: Callable[[str], Path], name: str) -> None:
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(checkpoint(name), num_labels=2).train()
    part: Any = regularizers.build({"name": "supervised_contrastive", "weight": 0.25}).start(model)
    ids = torch.randint(5, 40, (4, 6), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = model.config.eos_token_id or 1
    labels = torch.tensor([0, 1, 0, 0])
    logits = model(input_ids=ids).logits
    part.labels(labels)
    head = next(module for module in reversed(list(model.modules())) if isinstance(module, torch.nn.Linear))
    torch.testing.assert_close(head(part.read), logits)
    first = Pass(torch.tensor(2.0), logits)
    found = first.loss + part.addition(first, lambda: first, 4)
    expected = 0.75 * 2.0 + 0.25 * written_out(part.read.tolist(), labels.tolist(), 0.3) / 4
    assert found.item() == pytest.approx(expected, abs=1e-4)


def test_heads_that_read_tokens_are_refused(checkpoint: Callable[[str], Path]) -> None:
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(checkpoint("llama"), num_labels=2).train()
    regularizers.build("supervised_contrastive").start(model)
    with pytest.raises(CapabilityError, match="one vector per text, and the head of this base reads one per token"):
        model(input_ids=torch.tensor([[5, 6, 7]]))


def test_tasks_without_one_label_per_text_are_refused() -> None:
    from peftkit.errors import RecipeError
    from peftkit.recipe import Recipe

    text = "model: x\ntask: token_classification\ndata: {name: files, train: a.csv}\nmethod: lora\n"
    with pytest.raises(RecipeError, match="'supervised_contrastive' needs one label per text"):
        Recipe.from_text(text + "regularizers: [supervised_contrastive]\n")


@pytest.mark.training
@pytest.mark.parametrize("method", ["lora", "head_only"])
def test_it_trains_beside_methods(make_recipe: Callable[..., Any], tmp_path: Path, method: str) -> None:
    plain = run(make_recipe(method=method), tmp_path / "plain", options=RunOptions(show_progress=False))
    drawn = make_recipe("supervised_contrastive", method=method)
    found = run(drawn, tmp_path / "drawn", options=RunOptions(show_progress=False))
    assert found.history[0].values["loss"] != plain.history[0].values["loss"]
    assert all(math.isfinite(value) for value in found.metrics["validation"].values())
