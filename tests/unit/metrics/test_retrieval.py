"""Ranks: by hand, and as scikit-learn computes them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

from peftkit.errors import DataError
from peftkit.metrics import metrics

RANKS = np.array([1, 2, 4, 11])


def test_scores_by_hand() -> None:
    best = np.ones(4, np.int64)
    assert metrics.build("recall_at_k").compute(RANKS, best) == {"recall_at_10": 0.75}
    assert metrics.build({"name": "recall_at_k", "k": 1}).compute(RANKS, best) == {"recall_at_1": 0.25}
    reciprocal = metrics.build("mean_reciprocal_rank").compute(RANKS, best)["mean_reciprocal_rank"]
    assert reciprocal == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 11) / 4)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_scores_are_those_of_scikit_learn(k: int) -> None:
    rng = np.random.default_rng(3)
    similar = rng.normal(size=(30, 30))
    ranks = 1 + (similar > similar.diagonal()[:, None]).sum(1)
    found = metrics.build({"name": "ndcg_at_k", "k": k}).compute(ranks, np.ones(30, np.int64))
    assert found[f"ndcg_at_{k}"] == pytest.approx(ndcg_score(np.eye(30), similar, k=k))
    whole = metrics.build("mean_reciprocal_rank").compute(ranks, np.ones(30, np.int64))
    expected = label_ranking_average_precision_score(np.eye(30, dtype=int), similar)
    assert whole["mean_reciprocal_rank"] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["recall_at_k", "mean_reciprocal_rank", "ndcg_at_k"])
def test_resamples_are_computed_alike(name: str) -> None:
    metric = metrics.build(name)
    counts = np.array([[1, 1, 1, 1], [0, 3, 1, 0]])
    found = metric.resampled(RANKS, np.ones(4, np.int64), counts)[metric.score_name]
    for value, count in zip(found, counts, strict=True):
        repeated = np.repeat(RANKS, count)
        assert value == pytest.approx(metric.compute(repeated, np.ones(4, np.int64))[metric.score_name])


@pytest.mark.parametrize("wrong", [[], [0, 1], [1.5, 2.0], [[1], [2]]])
def test_what_are_no_ranks_is_refused(wrong: list[object]) -> None:
    with pytest.raises(DataError, match="'recall_at_k' measures ranks from 1 on"):
        metrics.build("recall_at_k").compute(np.array(wrong), np.ones(len(wrong)))
