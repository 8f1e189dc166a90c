from __future__ import annotations

import math

import numpy as np
import pytest

from peftkit.errors import DataError
from peftkit.metrics import metrics
from peftkit.metrics.bootstrap import bootstrap_intervals

LIKELIHOOD = np.array([[2.0, 4.0, 3.0], [6.0, 4.0, 1.0], [0.0, 0.0, 0.0]])
"""Summed loss, tokens, tokens guessed right; the last row has nothing to predict."""


def test_perplexity_weighs_tokens_not_rows() -> None:
    metric = metrics.build("perplexity")
    assert metric.compute(LIKELIHOOD, LIKELIHOOD[:, 1]) == {"perplexity": pytest.approx(math.exp(8 / 8))}
    assert not metric.greater_is_better


def test_token_accuracy_is_the_share_guessed_right() -> None:
    assert metrics.build("token_accuracy").compute(LIKELIHOOD, LIKELIHOOD[:, 1]) == {"token_accuracy": 0.5}


@pytest.mark.parametrize("name", ["perplexity", "token_accuracy"])
def test_intervals_are_those_of_resampled_rows(name: str) -> None:
    metric, random = metrics.build(name), np.random.default_rng(0)
    rows = np.column_stack([random.gamma(2.0, 4.0, 60), np.full(60, 9.0), random.integers(0, 9, 60)])
    found = bootstrap_intervals(metric, rows, rows[:, 1])[name]
    draws = [rows[random.integers(0, 60, 60)] for _ in range(1000)]
    low, high = np.quantile([metric.compute(draw, draw[:, 1])[name] for draw in draws], (0.025, 0.975))
    assert found.low == pytest.approx(low, rel=0.05)
    assert found.high == pytest.approx(high, rel=0.05)


@pytest.mark.parametrize("rows", [LIKELIHOOD[:0], LIKELIHOOD[2:]])
def test_nothing_to_predict_is_refused(rows: np.ndarray) -> None:
    with pytest.raises(DataError, match="'perplexity' got no tokens to predict"):
        metrics.build("perplexity").compute(rows, rows[:, 1])
