from __future__ import annotations

from pathlib import Path

import evaluate
import numpy as np
import pytest

from peftkit.metrics import metrics

TAGS = ("span_f1", "tag_accuracy")
TEXT = ("bleu", "chrf", "exact_answer", "rouge", "squad")
MEASURED = ("perplexity", "token_accuracy", "reward_accuracy", "reward_margin", "win_rate", "mean_reward")
"""Measured on numbers that only peftkit's tasks read."""
OFFLINE = [name for name in metrics.names() if name not in ("hub", *MEASURED, *TAGS)]
CLASSES = ([0, 1, 1, 0, 1], [0, 1, 0, 0, 1])
TEXTS = (["a red door", "two cats", "rain"], ["the red door", "two cats", "snow"])
RANKS = ([1, 2, 4, 11], [1, 1, 1, 1])
VALUES = ([0.25, 0.75, 0.5], [0.125, 1.0, 0.25])
REAL = ("pearson", "spearman", "mse", "rmse")
RETRIEVAL = ("recall_at_k", "mean_reciprocal_rank", "ndcg_at_k")


def test_all_offline_metrics_are_registered() -> None:
    assert {"accuracy", "f1", "f1_macro", "f1_micro", "matthews_correlation", *REAL} <= set(OFFLINE)


@pytest.mark.parametrize("name", OFFLINE)
def test_module_computes_the_metric(name: str) -> None:
    metric = metrics.build(name)
    rows = {**dict.fromkeys(REAL, VALUES), **dict.fromkeys(TEXT, TEXTS), **dict.fromkeys(RETRIEVAL, RANKS)}
    predicted, actual = rows.get(name, CLASSES)
    module = metric.module()
    assert isinstance(module, evaluate.Metric)
    assert module.name == metric.score_name
    assert module.compute(predictions=predicted, references=actual) == metric.compute(predicted, actual)


def test_module_takes_several_labels_and_numpy_arrays() -> None:
    predicted, actual = np.array([[1, 0], [1, 1], [0, 0]]), np.array([[1, 0], [0, 1], [0, 0]])
    found = metrics.build("f1_micro").module().compute(predictions=predicted, references=actual)
    assert found == {"f1_micro": pytest.approx(2 * 2 / 5)}


def test_module_does_not_round_values_to_classes() -> None:
    """Integer features would turn 0.75 into class 0, and 0.25 too."""
    found = metrics.build("mse").module().compute(predictions=[0.75, 0.25], references=[0.25, 0.25])
    assert found == {"mse": 0.125}


def test_modules_combine_and_collect_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder that evaluate.load would prefer to its own metric; modules that are at hand must not be affected.
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "accuracy" / "accuracy.py").write_text("raise RuntimeError('ran code of the working directory')\n")
    monkeypatch.chdir(tmp_path)
    combined = evaluate.combine([metrics.build(name).module() for name in ("accuracy", "f1", "f1_macro")])
    predicted, actual = CLASSES
    for start in (0, 2, 4):
        combined.add_batch(predictions=predicted[start : start + 2], references=actual[start : start + 2])
    assert combined.compute() == {
        "accuracy": pytest.approx(4 / 5),
        "f1": pytest.approx(4 / 5),
        "f1_macro": pytest.approx((4 / 5 + 4 / 5) / 2),
    }
