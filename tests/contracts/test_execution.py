"""How steps are computed changes no result: every method and every task, with and without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.cells import Cell, variants
from contracts.task_cases import TaskCase, all_cases
from contracts.test_tasks import without_dropout
from torch import Tensor

from peftkit.models import quiet_libraries, storage_of
from peftkit.padding_free import PaddingFree, padding_free_problem
from peftkit.tasks import DRAW, ROW
from peftkit.training import _tokenizer
from peftkit.training.environment import check_environment
from peftkit.training.execution import Execution
from peftkit.training.prepare import completed, load_rows, prepare_data
from peftkit.training.regularization import Regularization
from peftkit.training.scratch import lay_base
from peftkit.training.setup import Setup
from peftkit.training.tuning import tuned_model

Checkpoint = Callable[[str], Path]
CASES = [case for case in all_cases() if case.task["name"] not in ("dpo", "kto", "orpo", "reward_model", "grpo")]
"""Of the tasks that compute their loss themselves; TRL's are computed by the same models."""
STEPS = 50

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def scored(model: Any, cell: Cell) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs at real tokens, and the gradients of the mean of their squares."""
    batch = cell.inputs()
    model.zero_grad()
    logits = model(**batch).logits.float()
    real = logits[batch["attention_mask"].bool()] if logits.ndim == 3 else logits
    real.square().mean().backward()
    return real.detach(), {
        name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("architecture", ["bert_sequence", "bert_token", "gpt2", "llama"])
@pytest.mark.parametrize("variant", sorted(variants()))
def test_methods_are_the_same_without_padding(variant: str, architecture: str, checkpoint: Checkpoint) -> None:
    cell = Cell.of(variant, architecture, "fp32", checkpoint=checkpoint)
    if cell.refusal() is not None:
        pytest.skip("refused, as the matrix says")
    if not cell.method.per_token:
        pytest.skip("is computed with padding, see methods.TuningMethod.per_token")
    model = cell.tuned()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:  # many methods start where they change nothing
                weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(4))
    wanted, gradients = scored(model, cell)
    assert padding_free_problem(model) is None
    engine = PaddingFree(model)
    found, packed = scored(model, cell)
    assert (engine.packed, engine.padded) == ((0, 1) if _reads_a_cache(model) else (1, 0))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    for name, gradient in gradients.items():
        # Products of other shapes add up in another order; of float64's gradients both are as far as this.
        rounding = max(1e-5, 1e-4 * gradient.abs().max().item())
        torch.testing.assert_close(packed[name], gradient, atol=rounding, rtol=1e-3)


def _reads_a_cache(model: Any) -> bool:
    """Prefix tuning gives its vectors as keys and values of tokens that were there before."""
    config = getattr(model, "active_peft_config", None)
    return config is not None and str(config.peft_type).endswith("PREFIX_TUNING")


@pytest.mark.training
@pytest.mark.parametrize("case", CASES, ids=[f"{place}-{case.name}" for place, case in enumerate(CASES)])
def test_tasks_take_the_same_steps_without_padding(case: TaskCase, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Fifty steps of gradient descent from the same weights: the same losses."""
    setup = prepared(case, without_dropout(checkpoint(case.model), tmp_path / "model"), tmp_path)
    start = {name: weight.detach().clone() for name, weight in trainable(setup.model)}
    padded = list(losses(setup))
    with torch.no_grad():
        for name, weight in trainable(setup.model):
            weight.copy_(start[name])
    assert padding_free_problem(setup.model) is None
    engine = PaddingFree(setup.model)
    packed = list(losses(setup))
    assert engine.padded == 0
    assert packed == pytest.approx(padded, rel=2e-4, abs=2e-5)
    assert padded[-1] != pytest.approx(padded[0], rel=1e-3), "it learns, or nothing was compared"


LIKELY = [case for case in CASES if case.task["name"] in ("causal_lm", "instruction_tuning", "summarization")]


@pytest.mark.parametrize("case", LIKELY, ids=[f"{place}-{case.name}" for place, case in enumerate(LIKELY)])
def test_evaluations_read_the_same_without_all_logits(case: TaskCase, checkpoint: Checkpoint, tmp_path: Path) -> None:
    setup = prepared(case, without_dropout(checkpoint(case.model), tmp_path / "model"), tmp_path)
    task, model = setup.recipe.task, setup.model.eval()
    features = setup.data.features["train"].to_list()[:4]
    batch = {
        name: part for name, part in task.evaluation_collator(setup.data.tokenizer)(features).items() if name != ROW
    }
    items = task.items(batch).clamp(min=1)
    with torch.no_grad():
        plain = task.forward(model, batch)
        wanted = task.loss(plain, batch, criterion=setup.criterion, items=items)
        execution = Execution(setup, Regularization(model, []))
        scored = execution.scored(model, batch, items)
        assert scored is not None, execution.described()
        loss, output = scored
        pairs = zip(*(task.read(model, batch, part, generate=False) for part in (output, plain)), strict=True)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for found, expected in pairs:
        numbers = (getattr(part, "likelihood", part) for part in (found, expected))
        assert next(numbers) == pytest.approx(next(numbers), rel=1e-5)


def prepared(case: TaskCase, model: Path, folder: Path) -> Setup:
    from peftkit.training import RunOptions

    recipe = case.build(model, folder)
    environment = check_environment(recipe, folder)
    loaded, task = load_rows(recipe)
    recipe = lay_base(recipe, task, loaded.splits["train"], folder / "base")
    tokenizer = _tokenizer(recipe, RunOptions())
    rows = prepare_data(recipe, loaded, task=task, tokenizer=tokenizer)
    recipe = completed(recipe, rows)
    storage = storage_of(recipe, rows.task.head(), dtype=environment.weight_dtype)
    with quiet_libraries():
        tuned = tuned_model(recipe, rows, tokenizer, storage=storage, trust_remote_code=False).model
    return Setup(recipe, tuned, rows, environment)


def trainable(model: Any) -> Iterator[tuple[str, Tensor]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def losses(setup: Setup) -> Iterator[float]:
    """Of fifty steps over batches of four rows, again and again."""
    task, model = setup.recipe.task, setup.model.train()
    collate = task.collator(setup.data.tokenizer)
    features = [{**row, DRAW: 7} if task.draws else row for row in setup.data.features["train"].to_list()]
    optimizer = torch.optim.SGD([weight for _, weight in trainable(model)], lr=0.01)
    for step in range(STEPS):
        first = 4 * step % (len(features) - 3)
        batch = {name: part for name, part in collate(features[first : first + 4]).items() if name != ROW}
        loss = task.loss(
            task.forward(model, batch), batch, criterion=setup.criterion, items=task.items(batch).clamp(min=1)
        )
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()
