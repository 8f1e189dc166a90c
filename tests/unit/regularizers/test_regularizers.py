"""Regularizers against the papers' formulas, and in real runs: what they change, and what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from peftkit.errors import RecipeError
from peftkit.recipe import Recipe
from peftkit.regularizers import regularizers
from peftkit.training import RunOptions, run

MakeRecipe = Callable[..., Recipe]
QUIET = RunOptions(show_progress=False)
NAMES = ("fgm", "l2_sp", "neftune", "r_drop")


@pytest.fixture
def model(tiny_bert: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=2, attention_probs_dropout_prob=0.0)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def make_recipe(tiny_bert: Path, sentiment_files: dict[str, Path]) -> MakeRecipe:
    def make(*parts: Any, method: Any = "lora", **training: Any) -> Recipe:
        return Recipe.from_values(
            {
                "name": "tiny",
                "model": {"id": str(tiny_bert), "max_length": 32},
                "task": "sequence_classification",
                "data": {"name": "files"} | {split: str(path) for split, path in sentiment_files.items()},
                "method": method,
                "regularizers": list(parts),
                "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "logging_steps": 1, **training},
            },
            origin="test",
        )

    return make


def test_names_are_known() -> None:
    assert set(NAMES) <= set(regularizers.names())
    assert all(regularizers.get(name).paper for name in NAMES)


def test_neftune_adds_noise_of_the_papers_size_while_training(model: Any, batch: dict[str, torch.Tensor]) -> None:
    embedding = model.get_input_embeddings()
    plain = embedding(batch["input_ids"]).detach()
    regularizers.build({"name": "neftune", "alpha": 3.0}).start(model)
    size = 3.0 / (7 * 32) ** 0.5
    model.train()
    noise = embedding(batch["input_ids"]) - plain
    assert noise.abs().max() <= size
    assert noise.abs().max() > 0.95 * size
    assert noise.std().item() == pytest.approx(size / 3**0.5, rel=0.1)
    model.eval()
    assert torch.equal(embedding(batch["input_ids"]), plain)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen embedding", "trained embedding"])
def test_fgm_moves_every_row_by_epsilon_along_its_gradient(
    model: Any, batch: dict[str, torch.Tensor], frozen: bool
) -> None:
    """Miyato et al. 2017: r = epsilon g / |g|, g the gradient with respect to the row's embedded input."""
    model.requires_grad_(not frozen)
    model.classifier.requires_grad_(True)
    labels = torch.tensor([0, 1, 1])
    embedding = model.get_input_embeddings()
    table = embedding.weight.detach().clone()
    embedded = table[batch["input_ids"]].requires_grad_()
    model.eval()
    by_hand = model(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits
    (gradient,) = torch.autograd.grad(cross_entropy(by_hand, labels), embedded)
    move = 0.5 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None]
    moved = (embedded + move).detach()
    expected = cross_entropy(model(inputs_embeds=moved, attention_mask=batch["attention_mask"]).logits, labels)

    at_work = regularizers.build({"name": "fgm", "epsilon": 0.5}).start(model)
    model.train()
    found: list[torch.Tensor] = []

    def one_pass() -> None:
        loss = cross_entropy(model(**batch).logits, labels)
        loss.backward()
        found.append(loss.detach())

    one_pass()
    at_work.after_backward(one_pass)
    torch.testing.assert_close(found[0], cross_entropy(by_hand, labels).detach())
    torch.testing.assert_close(found[1], expected.detach(), rtol=1e-5, atol=1e-6)
    assert found[1] > found[0]
    assert torch.equal(embedding.weight, table)
    one_pass()
    assert torch.equal(found[2], found[0]), "the next batch is looked at, not attacked"


def test_r_drop_is_the_symmetric_divergence() -> None:
    at_work = regularizers.build({"name": "r_drop", "alpha": 3.0}).start(None)  # type: ignore[arg-type] # looks at none
    first, second = (torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    p, q = first.softmax(-1), second.softmax(-1)
    both = (p * (p / q).log()).sum() + (q * (q / p).log()).sum()
    expected = 3.0 / 2 * (both / 2) / 5
    torch.testing.assert_close(at_work.disagreement(first, second, 5), expected)
    assert at_work.disagreement(first, first, 5).item() == 0.0


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


def _weights(recipe: Recipe, folder: Path) -> bytes:
    run(recipe, folder, options=QUIET)
    return next(folder.glob("*/*.safetensors")).read_bytes()


@pytest.mark.training
def test_every_regularizer_changes_a_run(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    found = {_weights(make_recipe(*parts), tmp_path / "-".join(["run", *parts])) for parts in ((), *zip(NAMES))}
    assert len(found) == 1 + len(NAMES)


@pytest.mark.training
@pytest.mark.parametrize("method", ["full", "prefix", "bottleneck"])
def test_all_together_work_with_every_kind_of_method(make_recipe: MakeRecipe, tmp_path: Path, method: str) -> None:
    """And the same seed gives the same bytes."""
    together = _weights(make_recipe(*NAMES, method=method), tmp_path / "together")
    assert together != _weights(make_recipe(method=method), tmp_path / "plain")
    assert together == _weights(make_recipe(*NAMES, method=method), tmp_path / "again")


@pytest.mark.training
def test_penalties_are_added_once_where_a_batch_is_passed_again(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftkit.regularizers import l2_sp

    original, asked = l2_sp._Distance.penalty, []

    def penalty(self: Any) -> torch.Tensor:
        asked.append(1)
        return original(self)

    monkeypatch.setattr(l2_sp._Distance, "penalty", penalty)
    result = run(make_recipe("fgm", "l2_sp"), tmp_path / "run", options=QUIET)
    assert len(asked) == result.cost.steps == 6


@pytest.mark.training
@pytest.mark.parametrize("name", ["l2_sp", "r_drop", "fgm"])
def test_accumulated_micro_batches_equal_one_batch(make_recipe: MakeRecipe, tmp_path: Path, name: str) -> None:
    """Without dropout, which would differ: R-Drop then adds nothing, and its two passes average to one."""
    losses = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        recipe = make_recipe(
            {"name": name, **({"strength": 5.0} if name == "l2_sp" else {})},
            batch_size=batch_size,
            accumulation_steps=accumulation,
            epochs=2,
        )
        folder = tmp_path / f"by-{batch_size}"
        model = recipe.model.model_copy(update={"id": str(_without_dropout(recipe.model.id, tmp_path))})
        result = run(recipe.model_copy(update={"model": model}), folder, options=QUIET)
        losses.append([point.values["loss"] for point in result.history if "loss" in point.values])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def _without_dropout(base: str, folder: Path) -> Path:
    import json
    import shutil

    copy = folder / "still"
    if not copy.exists():
        shutil.copytree(base, copy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"attention_probs_dropout_prob": 0.0}))
    return copy


@pytest.mark.training
def test_labels_that_do_not_fit_are_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    rows = tmp_path / "numbers.csv"
    rows.write_text("text,label\n" + "".join(f"a film {number},{number / 7}\n" for number in range(16)))
    recipe = make_recipe("r_drop")
    values = recipe.resolved() | {
        "task": {"name": "sequence_classification", "problem_type": "regression"},
        "data": {"name": "files", "train": str(rows)},
    }
    with pytest.raises(
        RecipeError, match=r"regularizers: 'r_drop' works with classes, and the labels of task .* numbers"
    ):
        Recipe.from_values(values, origin="test")
