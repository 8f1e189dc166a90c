"""AdaLoRA: the budget is given out over the run, ends where it was asked, and is told in the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.cells import Cell

from peftkit.layers.rank_allocation import keep_divisors, orthogonality_penalty, ranks
from peftkit.methods import TuningContext
from peftkit.models import to_float32_masters
from peftkit.recipe import Recipe
from peftkit.report.page import render_page
from peftkit.report.ranks import STEPS_SHOWN, rank_view
from peftkit.results import RANK_PREFIX, HistoryPoint, RunResult
from peftkit.training import RunOptions, run

MakeCell = Callable[..., Cell]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
MATRICES = 13
"""Linear layers of the tiny BERT: six in each of two blocks, and the pooler."""


@pytest.fixture
def trained(tiny_bert: Path, sentiment_files: dict[str, Path], tmp_path: Path) -> Callable[..., RunResult]:
    """Function from the name of a folder and options of the method to the result of 24 steps."""

    def train(folder: str = "run", **method: Any) -> RunResult:
        recipe = Recipe.from_values(
            {
                "name": "tiny",
                "model": {"id": str(tiny_bert), "max_length": 32},
                "task": "sequence_classification",
                "data": {"name": "files"} | {split: str(path) for split, path in sentiment_files.items()},
                "method": {"name": "adalora", "target_rank": 2, "interval": 2, **method},
                "training": {"epochs": 4, "batch_size": 8, "learning_rate": 0.01},
            },
            origin="test",
        )
        return run(recipe, tmp_path / folder, options=RunOptions(show_progress=False))

    return train


def _noted(result: RunResult) -> dict[int, dict[str, int]]:
    """Ranks by step and matrix."""
    return {
        point.step: {key: int(value) for key, value in point.values.items()}
        for point in result.history
        if any(key.startswith(RANK_PREFIX) for key in point.values)
    }


@pytest.mark.training
def test_ranks_change_and_the_budget_ends_where_it_was_asked(trained: Callable[..., RunResult], tmp_path: Path) -> None:
    """24 steps: 2 of warm-up, 7 at the end with fixed ranks; 13 matrices from rank 3 to a mean rank of 2."""
    from safetensors.torch import load_file

    result = trained()
    noted = _noted(result)
    assert noted[1] == dict.fromkeys(noted[1], 3)
    totals = {step: sum(values.values()) for step, values in noted.items()}
    assert totals[1] == 3 * MATRICES
    assert list(totals.values()) == sorted(totals.values(), reverse=True)
    assert totals[24] == 2 * MATRICES
    assert len(set(noted[24].values())) > 1, "every matrix kept the same rank"
    settled = [values for step, values in noted.items() if step >= 24 - 7]
    assert all(values == noted[24] for values in settled)
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    rows = [len(weight) for name, weight in saved.items() if name.endswith("lora_E")]
    assert sum(rows) == 2 * MATRICES
    assert result.best_step == 24


@pytest.mark.training
def test_report_shows_the_rank_of_every_matrix(trained: Callable[..., RunResult]) -> None:
    result = trained()
    view = rank_view(result)
    assert view is not None
    assert len(view.matrices) == MATRICES
    assert view.totals[-1] == 2 * MATRICES
    assert view.steps[0] == 1
    assert view.steps[-1] == 24
    page = render_page(result)
    assert "At the end all of them together have 26." in page
    assert page.count('<th scope="row" class="code">') == MATRICES
    assert ">Rank/" not in page, "ranks are not among the other charts"


def _with_history(result: RunResult, points: list[tuple[int, dict[str, float]]]) -> RunResult:
    history = tuple(HistoryPoint(step=step, epoch=1.0, values=values) for step, values in points)
    return result.model_copy(update={"history": history})


@pytest.mark.training
def test_many_allocations_are_thinned_out(trained: Callable[..., RunResult]) -> None:
    result = trained()
    names = [f"{RANK_PREFIX}bert.layer.{block}.query" for block in (0, 1)]
    points = [(step, {names[0]: 40.0 - step}) for step in range(40)]
    view = rank_view(_with_history(result, [(0, dict.fromkeys(names, 40.0)), *points[1:]]))
    assert view is not None
    assert len(view.steps) == STEPS_SHOWN
    assert (view.steps[0], view.steps[-1]) == (0, 39)
    assert [matrix.name for matrix in view.matrices] == ["0.query", "1.query"]
    assert view.shared == "bert.layer"
    assert view.matrices[0].ranks[-1] == 1
    assert set(view.matrices[1].ranks) == {40}, "what is not logged again has not changed"
    assert rank_view(_with_history(result, [(1, {"loss": 1.0})])) is None


def test_penalty_is_the_mean_distance_from_orthogonality(cell: MakeCell) -> None:
    """Zhang et al. 2023, equation 4, computed by hand."""
    made = cell("adalora", orthogonality=0.3)
    model = made.tuned()
    distances = []
    for name, weight in model.named_parameters():
        if "lora_A" in name:
            distances.append((weight @ weight.T - torch.eye(12)).pow(2).sum().sqrt())
        if "lora_B" in name:
            distances.append((weight.T @ weight - torch.eye(12)).pow(2).sum().sqrt())
    assert len(distances) == 2 * MATRICES
    expected = sum(distances) / len(distances)
    assert torch.allclose(orthogonality_penalty(model), expected)
    penalty = made.method.penalty(model)
    assert penalty is not None
    assert torch.allclose(penalty, 0.3 * expected)
    assert cell("adalora", orthogonality=0.0).method.penalty(model) is None


@pytest.mark.training
def test_penalty_is_in_the_loss_that_is_trained(trained: Callable[..., RunResult]) -> None:
    """peft adds it where the model computes its own loss, which peftkit's models do not."""
    plain, weighted = (
        next(point.values["loss"] for point in trained(folder, orthogonality=weight).history if "loss" in point.values)
        for folder, weight in (("plain", 0.0), ("weighted", 5.0))
    )
    assert weighted > plain + 1.0


def test_divisors_do_not_train_on_a_16_bit_base(cell: MakeCell) -> None:
    made = cell("adalora", storage="bf16")
    model = to_float32_masters(made.method.apply(made.base(), made.context))
    divisors = {name: weight for name, weight in model.named_parameters() if ".ranknum." in name}
    assert len(divisors) == MATRICES
    assert not any(weight.requires_grad for weight in divisors.values())
    assert all(weight.dtype == torch.float32 for weight in divisors.values())
    next(iter(divisors.values())).requires_grad_(True)
    keep_divisors(model)
    assert not any(weight.requires_grad for weight in divisors.values())


def test_ranks_are_those_of_the_pattern(cell: MakeCell) -> None:
    model = cell("adalora", target_rank=2).tuned()
    assert set(ranks(model).values()) == {3}
    name = "bert.pooler.dense.lora_E"
    model.peft_config["default"].rank_pattern = {name: [True, False, False]}
    assert ranks(model)["bert.pooler.dense"] == 1


@pytest.mark.parametrize("steps", [1, 5])
def test_too_short_a_run_is_refused(cell: MakeCell, steps: int) -> None:
    made = cell("adalora", warmup_share=0.4, final_share=0.4)
    problem = made.method.problem(made.skeleton(), TuningContext("SEQ_CLS", ("classifier",), steps))
    assert problem is not None
    assert f"of the run's {steps} optimizer steps" in problem
    assert problem.endswith("train longer or use lora")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_rank": 4, "target_rank": 8}, "init_rank 4 is below target_rank 8; ranks only shrink"),
        ({"warmup_share": 0.5, "final_share": 0.5}, "leave no step to prune in"),
    ],
)
def test_options_that_contradict_are_refused(cell: MakeCell, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cell("adalora", **options)
