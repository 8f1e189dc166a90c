"""TRL's losses, as they are fed and asked here, are those of the papers; every formula is written out below."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.task_cases import TaskCase
from contracts.task_cases.dpo import TEXTS
from contracts.task_cases.kto import ROWS
from transformers import AutoModelForCausalLM

from peftkit.artifacts import locate_tokenizer
from peftkit.models import load_tokenizer, storage_of
from peftkit.training.base_values import with_base_values
from peftkit.training.engines import build_trainer
from peftkit.training.environment import check_environment
from peftkit.training.prepare import completed, load_rows, prepare_data
from peftkit.training.setup import Setup
from peftkit.training.trainer import HookedTrainer
from peftkit.training.tuning import tuned_model

BETA = 0.3
Build = Callable[..., HookedTrainer]


@pytest.fixture
def build(checkpoint: Callable[[str], Path], tmp_path: Path) -> Build:
    """Function from a task to its trainer on all rows of the case, its adapter pushed away from where it started."""

    def make(task: Mapping[str, Any], rows: Any = TEXTS, **parts: Any) -> HookedTrainer:
        case = TaskCase("llama", task, rows, rows, recipe=parts)
        recipe = case.build(checkpoint("llama"), tmp_path, batch_size=len(rows))
        environment = check_environment(recipe, tmp_path)
        loaded, resolved = load_rows(recipe)
        tokenizer = load_tokenizer(locate_tokenizer(recipe.model.locator, revision=None))
        data = prepare_data(recipe, loaded, task=resolved, tokenizer=tokenizer)
        recipe = completed(recipe, data)
        storage = storage_of(recipe, data.task.head(), dtype=torch.float32)
        base = tuned_model(recipe, data, tokenizer, storage=storage, trust_remote_code=False)
        setup = with_base_values(Setup(recipe, base.model, data, environment))
        trainer = build_trainer(setup, tmp_path / "checkpoints", callbacks=[])
        torch.manual_seed(3)
        with torch.no_grad():
            for weight in trainer.model.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight) * 0.05)
        return trainer

    return make


def batch_and_loss(trainer: HookedTrainer) -> tuple[dict[str, torch.Tensor], float]:
    """The first batch of all rows, and its loss."""
    features = trainer.setup.data.features["train"]
    batch = dict(trainer.data_collator(features.to_list()))
    batch.pop("row")
    with torch.no_grad():
        return batch, trainer.compute_loss(trainer.model.eval(), batch).item()


def log_likelihoods(model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(rows, tokens - 1) log-probability of every labelled token, 0 elsewhere; one row at a time, without padding."""
    found = torch.zeros(len(ids), ids.shape[1] - 1, dtype=torch.float64)
    for row, one in enumerate(ids):
        logits = model(input_ids=one[None]).logits[0].double().log_softmax(-1)
        for place in range(1, len(one)):
            if labels[row, place] != -100:
                found[row, place - 1] = logits[place - 1, labels[row, place]]
    return found


@pytest.fixture
def base(checkpoint: Callable[[str], Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint("llama")).eval()


def sigma(value: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-value))


def sums(trainer: HookedTrainer, base: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """log pi(y_w), log pi(y_l), log pi_ref(y_w), log pi_ref(y_l), each (rows,)."""
    with torch.no_grad():
        tuned, reference = (
            log_likelihoods(model, batch["input_ids"], batch["labels"]).sum(1) for model in (trainer.model, base)
        )
    return (*tuned.chunk(2), *reference.chunk(2))


DPO = {
    # Rafailov et al. 2023, equation 7
    "sigmoid": lambda h: -torch.log(sigma(BETA * h)),
    # Zhao et al. 2023 (SLiC), as in section 4 of Liu et al. 2023
    "hinge": lambda h: torch.clamp(1 - BETA * h, min=0),
    # Chowdhury et al. 2024, equation 9, with labels wrong at a rate of 0.1
    "robust": lambda h: (-0.9 * torch.log(sigma(BETA * h)) + 0.1 * torch.log(sigma(-BETA * h))) / 0.8,
}


@pytest.mark.parametrize("loss_type", DPO)
def test_dpo(build: Build, base: Any, loss_type: str) -> None:
    smoothing = {"label_smoothing": 0.1} if loss_type == "robust" else {}
    trainer = build({"name": "dpo", "beta": BETA, "loss_type": loss_type, **smoothing})
    batch, loss = batch_and_loss(trainer)
    better, worse, base_better, base_worse = sums(trainer, base, batch)
    lead = (better - base_better) - (worse - base_worse)
    assert lead.abs().min() > 1e-3  # else every formula would give the same
    assert loss == pytest.approx(DPO[loss_type](lead).mean().item(), abs=1e-5)


def test_ipo(build: Build, base: Any) -> None:
    """Azar et al. 2023, equation 17, with means over tokens in place of sums, which TRL's authors asked them about."""
    trainer = build({"name": "dpo", "beta": BETA, "loss_type": "ipo"})
    batch, loss = batch_and_loss(trainer)
    better, worse, base_better, base_worse = sums(trainer, base, batch)
    of_better, of_worse = (batch["labels"] != -100).sum(1).chunk(2)
    lead = (better - base_better) / of_better - (worse - base_worse) / of_worse
    assert loss == pytest.approx(((lead - 1 / (2 * BETA)) ** 2).mean().item(), abs=1e-5)


def test_orpo(build: Build, base: Any) -> None:
    """Hong et al. 2024, equations 4, 6 and 7; TRL learns the prompt too."""
    trainer = build({"name": "orpo", "beta": BETA})
    batch, loss = batch_and_loss(trainer)
    better, worse, _, _ = sums(trainer, base, batch)
    of_better, of_worse = (batch["labels"] != -100).sum(1).chunk(2)
    p_better, p_worse = torch.exp(better / of_better), torch.exp(worse / of_worse)
    odds = (p_better / (1 - p_better)) / (p_worse / (1 - p_worse))
    whole = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100).chunk(2)[0]
    with torch.no_grad():
        every = log_likelihoods(trainer.model, batch["input_ids"].chunk(2)[0], whole)
    likelihood = -every.sum() / (whole[:, 1:] != -100).sum()
    expected = likelihood - BETA * torch.log(sigma(torch.log(odds))).mean()
    assert loss == pytest.approx(expected.item(), abs=1e-5)


def test_kto(build: Build, base: Any) -> None:
    """Ethayarajh et al. 2024, equations 6 to 8, with the reference point estimated from mismatched answers."""
    weights = {"good_weight": 1.2, "bad_weight": 0.7}
    trainer = build({"name": "kto", "beta": BETA, **weights}, ROWS)
    batch, loss = batch_and_loss(trainer)
    with torch.no_grad():
        ratio, other = (
            log_likelihoods(trainer.model, batch[f"{prefix}input_ids"], batch[f"{prefix}labels"]).sum(1)
            - log_likelihoods(base, batch[f"{prefix}input_ids"], batch[f"{prefix}labels"]).sum(1)
            for prefix in ("", "other_")
        )
    point = max(0.0, other.mean().item())
    good = batch["good"].bool()
    values = torch.where(good, 1.2 * sigma(BETA * (ratio - point)), 0.7 * sigma(BETA * (point - ratio)))
    expected = (torch.where(good, 1.2, 0.7) - values).mean().item()
    assert loss == pytest.approx(expected, abs=1e-5)


def test_mismatched_answers_belong_to_other_prompts(build: Build) -> None:
    features = build({"name": "kto"}, ROWS).setup.data.features["train"]
    for place, row in enumerate(features):
        start = sum(label == -100 for label in row["labels"])
        assert row["other_input_ids"][:start] == row["input_ids"][:start]
        other = features[(place + len(features) // 2) % len(features)]
        assert [token for token in row["other_labels"] if token != -100] == [
            token for token in other["labels"] if token != -100
        ]


@pytest.mark.parametrize("center", [None, 0.5])
def test_reward_model(build: Build, center: float | None) -> None:
    """Ouyang et al. 2022, equation 1; the penalty is that of Eisenstein et al. 2023, equation 2."""
    trainer = build({"name": "reward_model", **({"center": center} if center else {})})
    batch, loss = batch_and_loss(trainer)
    with torch.no_grad():
        rewards = torch.cat(
            [
                trainer.model(input_ids=ids[mask.bool()][None]).logits[0].double()
                for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            ]
        )
    better, worse = rewards.chunk(2)
    expected = -torch.log(sigma(better - worse)).mean() + (center or 0) * ((better + worse) ** 2).mean()
    assert loss == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("method", ["lora", "full", "prefix", "ia3", "bottleneck", {"name": "lora", "init": "pissa"}])
def test_untrained_model_is_the_base(build: Build, method: Any) -> None:
    """Before any step the loss is log 2 with every method, also where the adapter changes the base from the start."""
    trainer = build({"name": "dpo"}, method=method)
    features = trainer.setup.data.features["train"]
    assert trainer.ref_model is None
    assert list(getattr(trainer.model, "peft_config", {"default": None})) == ["default"]
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight.sub_(torch.randn_like(weight) * 0.05)
        batch = dict(trainer.data_collator(features.to_list()))
        batch.pop("row")
        loss = trainer.compute_loss(trainer.model.eval(), batch).item()
    assert loss == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_trl_rounds_nothing_that_trains_on_a_quantized_base(build: Build) -> None:
    pytest.importorskip("bitsandbytes")
    trainer = build({"name": "dpo"}, quantization="nf4")
    assert {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad} == {torch.float32}
