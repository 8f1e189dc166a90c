"""Regularizers in real runs: what they change, what they leave alone, and what they are refused beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from peftkit.errors import CapabilityError, RecipeError
from peftkit.recipe import Recipe
from peftkit.regularizers import regularizers
from peftkit.training import RunOptions, check, run
from peftkit.training.regularization import Regularization

MakeRecipe = Callable[..., Recipe]
QUIET = RunOptions(show_progress=False)
NAMES = (
    "supervised_contrastive",
    "ema",
    "fgm",
    "freelb",
    "l2_sp",
    "mixout",
    "mixup",
    "neftune",
    "pgd",
    "r_drop",
    "smart",
    "swa",
)


def test_names_are_known() -> None:
    assert set(NAMES) == {name for name in regularizers.names() if regularizers.get(name).__module__ != __name__}
    assert all(regularizers.get(name).paper for name in NAMES)


def _weights(recipe: Recipe, folder: Path) -> bytes:
    run(recipe, folder, options=QUIET)
    return next(folder.glob("*/*.safetensors")).read_bytes()


@pytest.mark.training
def test_every_regularizer_changes_a_run(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    found = {_weights(make_recipe(*parts), tmp_path / "-".join(["run", *parts])) for parts in ((), *zip(NAMES))}
    assert len(found) == 1 + len(NAMES)


@pytest.mark.training
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("method", "attack"),
    [("full", "smart"), ("prefix", "pgd"), ({"name": "bottleneck", "width": 8}, "freelb"), ("lora", "fgm")],
    ids=["full", "prefix", "bottleneck", "lora"],
)
def test_all_together_work_with_every_kind_of_method(
    make_recipe: MakeRecipe, tmp_path: Path, method: Any, attack: str
) -> None:
    """And the same seed gives the same bytes."""
    names = [attack, "r_drop", "mixup", "l2_sp", "ema", "neftune", *(["mixout"] if method != "prefix" else [])]
    together = _weights(make_recipe(*names, method=method, evaluate_every=3), tmp_path / "together")
    assert together != _weights(make_recipe(method=method), tmp_path / "plain")
    assert together == _weights(make_recipe(*names, method=method, evaluate_every=3), tmp_path / "again")


@pytest.mark.training
@pytest.mark.parametrize(
    ("parts", "base", "values"),
    [
        (["pgd", "r_drop", "mixup", "ema"], "bert", {"training": {"gradient_checkpointing": True}}),
        (["freelb", "r_drop", "swa"], "bert", {"training": {"precision": "bf16"}, "dtype": "bfloat16"}),
        (["smart", "mixup", "ema"], "bert", {"quantization": "nf4"}),
        (["pgd", "r_drop", "mixout", "ema"], "gpt2", {"task": "causal_lm"}),
        (["smart", "neftune", "swa"], "t5", {}),
        (["freelb", "mixup"], "distilbert", {}),
    ],
    ids=["checkpointing", "bf16", "nf4", "causal_lm", "t5", "distilbert"],
)
def test_runs_of_every_kind_lower_their_loss_and_reload(
    make_recipe: MakeRecipe,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    parts: Any,
    base: str,
    values: dict[str, Any],
) -> None:
    """A run ends only if the saved weights give the logits of the trained ones."""
    values = dict(values)
    if "quantization" in values:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'peftkit[quantization]'")
    recipe = make_recipe(*parts, base=checkpoint(base), epochs=3).resolved()
    training = recipe["training"] | values.pop("training", {})
    model = recipe["model"] | {"dtype": values.pop("dtype", "auto")}
    changed = recipe | values | {"training": training, "model": model, "metrics": [], "loss": None}
    result = run(Recipe.from_values(changed, origin="test"), tmp_path / "run", options=QUIET)
    losses = [point.values["loss"] for point in result.history if "loss" in point.values]
    assert sum(losses[-6:]) < 0.98 * sum(losses[:6])


@pytest.mark.training
@pytest.mark.parametrize("attack", ["fgm", "pgd", "freelb", "smart"])
def test_penalties_are_added_once_where_a_batch_is_passed_again(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    from peftkit.regularizers import l2_sp

    original, asked = l2_sp._Distance.penalty, []

    def penalty(self: Any) -> torch.Tensor:
        asked.append(1)
        return original(self)

    monkeypatch.setattr(l2_sp._Distance, "penalty", penalty)
    result = run(make_recipe(attack, "l2_sp"), tmp_path / "run", options=QUIET)
    assert len(asked) == result.cost.steps == 6


def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the random starts away: they are drawn for each micro-batch, so that no two ways of cutting agree."""
    from peftkit.regularizers import embedded_inputs

    monkeypatch.setattr(embedded_inputs, "noise_within", lambda embedded, *args, **kwargs: torch.zeros_like(embedded))
    monkeypatch.setattr(torch, "randn_like", lambda tensor: torch.sign(tensor.detach()) + 0.5)


@pytest.mark.training
@pytest.mark.parametrize("name", ["l2_sp", "r_drop", "fgm", "pgd", "freelb", "smart", "ema", "swa"])
def test_accumulated_micro_batches_equal_one_batch(
    make_recipe: MakeRecipe, still_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without dropout, which would differ: R-Drop then adds nothing, and its two passes average to one."""
    _still(monkeypatch)
    changed = {"l2_sp": {"strength": 5.0}, "smart": {"smoothness": 5.0, "epsilon": 0.1, "noise": 0.05}}
    found = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        recipe = make_recipe(
            {"name": name, **changed.get(name, {})},
            base=still_bert,
            batch_size=batch_size,
            accumulation_steps=accumulation,
            optimizer="sgd",
            learning_rate=0.3,
            epochs=2,
        )
        result = run(recipe, tmp_path / f"by-{batch_size}", options=QUIET)
        points = [point.values for point in result.history]
        found.append([values[key] for values in points for key in ("loss", "validation_loss") if key in values])
    assert found[0] == pytest.approx(found[1], rel=2e-3)


@pytest.mark.training
@pytest.mark.parametrize("name", ["ema", "swa"])
def test_averages_are_what_is_evaluated_and_saved(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The weights of every step are written down; their average is computed from these, and loaded from the run."""
    from safetensors.torch import load_file

    points: list[dict[str, torch.Tensor]] = []
    original = Regularization.on_step_end

    def noting(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        points.append({key: weight.detach().clone() for key, weight in self.model.named_parameters()})

    monkeypatch.setattr(Regularization, "on_step_end", noting)
    options = {"decay": 0.5} if name == "ema" else {"start_share": 0.5}
    recipe = make_recipe({"name": name, **options}, learning_rate=0.05, evaluate_every=6)
    plain = run(make_recipe(learning_rate=0.05, evaluate_every=6), tmp_path / "plain", options=QUIET)
    points.clear()
    result = run(recipe, tmp_path / "run", options=QUIET)
    assert len(points) == 6
    shares = [0.0] * 3 + [1 / 3] * 3 if name == "swa" else [0.5 ** (6 - step) / (1 - 0.5**6) for step in range(6)]
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    key = next(key for key in saved if "lora_B" in key)
    history = [point[key.replace(".weight", ".default.weight")] for point in points]
    expected = sum(share * weight for share, weight in zip(shares, history, strict=True))
    torch.testing.assert_close(saved[key], expected, rtol=1e-5, atol=1e-6)
    assert result.splits["validation"].metrics.keys() == plain.splits["validation"].metrics.keys()
    assert [p.values for p in result.history if "loss" in p.values] == [
        p.values for p in plain.history if "loss" in p.values
    ], "the average never touches the training"
    assert _validation(result) != _validation(plain)


def _validation(result: Any) -> list[float]:
    return [point.values["validation_loss"] for point in result.history if "validation_loss" in point.values]


@pytest.mark.parametrize(
    ("parts", "values", "message"),
    [
        (["fgm", "pgd"], {}, "'fgm' and 'pgd' both attack the embedded input; keep one of them"),
        (["smart", "l2_sp", "freelb"], {}, "'smart' and 'freelb' both attack the embedded input; keep one"),
        (["fgm", "fgm"], {}, "'fgm' and 'fgm' both attack the embedded input; keep one"),
        (["ema", "swa"], {}, "'ema' and 'swa' both average the weights; keep one of them"),
        (["mixup", "mixup"], {}, "'mixup' and 'mixup' both mix rows"),
        (["ema"], {"method": "adalora"}, "'ema' averages weights over steps, and method 'adalora' drops some of them"),
        (["swa"], {"method": ["adalora", "layer_norm"]}, "'swa' averages weights over steps, and method 'stack' drops"),
        (["mixout"], {"method": "prefix"}, "'mixout' mixes weights with their start, which for method 'prefix' is at"),
        (
            ["mixout"],
            {"method": "p_tuning"},
            "'mixout' mixes weights with their start, which for method 'p_tuning' is at",
        ),
        (
            ["mixout"],
            {"method": "peft:prompt_tuning"},
            "'mixout' mixes weights with their start, which for method 'peft' is at",
        ),
        (["mixout"], {"gradient_checkpointing": True}, "'mixout' does not allow training.gradient_checkpointing"),
    ],
)
def test_what_does_not_go_together_is_refused(
    make_recipe: MakeRecipe, parts: list[str], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        make_recipe(*parts, **values)
    assert f"regularizers: {message}" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("r_drop", {"problem_type": "regression"}, "'r_drop' works with classes, and the labels of task .* numbers"),
        ("smart", {"problem_type": "multi_label"}, "'smart' works with classes or numbers, and the labels .* flags"),
        ("mixup", {"problem_type": "regression"}, "'mixup' works with classes, and the labels of task .* numbers"),
        ("mixup", {"name": "token_classification"}, "'mixup' needs one label per text, and those of task 'token_c"),
        ("mixup", {"name": "causal_lm"}, "'mixup' needs one label per text, and those of task 'causal_lm' do not"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    make_recipe: MakeRecipe, name: str, task: dict[str, Any], message: str
) -> None:
    values = make_recipe().resolved() | {"task": {"name": "sequence_classification", **task}, "regularizers": [name]}
    with pytest.raises(RecipeError, match=f"regularizers: {message}"):
        Recipe.from_values(values, origin="test")


def test_a_base_that_does_not_fit_is_found_without_weights(make_recipe: MakeRecipe, tiny_t5: Path) -> None:
    with pytest.raises(CapabilityError, match="'mixup' needs one stack of blocks, and T5ForSequenceClassification has"):
        check(make_recipe("mixup", base=tiny_t5), options=QUIET)


@pytest.mark.training
def test_comparisons_count_the_labels_of_a_task_with_several_divisors(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masked tokens and pairs of sentences are averaged each by itself; R-Drop compares the masked tokens."""
    from contracts.task_cases.masked_lm_nsp import CASE

    original, found = Regularization.compared, []

    def compared(self: Any, loss: torch.Tensor, logits: Any, again: Any, items: torch.Tensor) -> torch.Tensor:
        found.append((items, logits().shape[0]))
        return original(self, loss, logits, again, items)

    monkeypatch.setattr(Regularization, "compared", compared)
    case = replace(CASE, recipe={"regularizers": ["r_drop"]})
    run(case.build(checkpoint(case.model), tmp_path, batch_size=4, max_steps=2), tmp_path / "run", options=QUIET)
    assert len(found) == 2
    for items, labelled in found:
        assert items.shape == ()
        assert items == labelled > 4
