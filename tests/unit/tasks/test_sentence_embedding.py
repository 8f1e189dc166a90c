"""Sentence embeddings: losses by the papers' formulas in fp64, ranks by hand, pooling, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoModel, AutoTokenizer

from peftkit.artifacts import locate_model
from peftkit.errors import CapabilityError, DataError, RecipeError
from peftkit.layers.pooling import pooled
from peftkit.losses import losses
from peftkit.models import load_model, load_tokenizer, skeleton
from peftkit.outputs import read_batch
from peftkit.recipe import ModelSpec
from peftkit.storage import Storage
from peftkit.tasks import Encoded, Task, tasks

Checkpoint = Callable[[str], Path]
ROWS = Dataset.from_list(
    [
        {"text": "the film was long", "text_pair": "it was a long film", "negative": "rude staff", "score": 4.5},
        {"text": "the soup was cold", "text_pair": "a cold soup", "negative": "a film", "score": 5.0},
        {"text": "kind staff", "text_pair": "we loved the very soup", "negative": "the plot is a mess", "score": 0.5},
    ]
)
OWN = losses.build("own")


def resolved(rows: Dataset, **options: Any) -> Task:
    return tasks.build({"name": "sentence_embedding", "pooling": "mean", **options}).resolved(DatasetDict(train=rows))


def found_loss(checkpoint: Path, rows: Dataset, **options: Any) -> tuple[float, list[np.ndarray]]:
    """peftkit's loss on `rows` as one batch, and the vectors (rows, dimensions) of each column from transformers."""
    task, tokenizer = resolved(rows, **options), load_tokenizer(locate_model(str(checkpoint)))
    model = AutoModel.from_pretrained(checkpoint).eval()
    batch = task.collator(tokenizer)(task.encode(rows, tokenizer, 32).to_list())
    with torch.no_grad():
        output = task.forward(model, batch)
        loss = task.loss(output, batch, criterion=OWN, items=task.items(batch))
        vectors = []
        for column in ("text", "text_pair", "negative"):
            if column in rows.column_names:
                texts = [tokenizer(text, return_tensors="pt") for text in rows[column]]
                means = [model(**text).last_hidden_state[0].double().mean(0) for text in texts]
                vectors.append(np.stack([mean.numpy() for mean in means]))
    return float(loss), vectors


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    return float(one @ two / math.sqrt((one @ one) * (two @ two)))


def info_nce(anchors: np.ndarray, candidates: np.ndarray, temperature: float) -> float:
    """van den Oord et al. 2018, equation 4: minus the log of the share of the right candidate, mean over rows."""
    total = 0.0
    for row, anchor in enumerate(anchors):
        weights = [math.exp(cosine(anchor, candidate) / temperature) for candidate in candidates]
        total -= math.log(weights[row] / sum(weights))
    return total / len(anchors)


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_scores_are_fitted_by_cosines(checkpoint: Checkpoint, name: str) -> None:
    loss, (first, second) = found_loss(checkpoint(name), ROWS.remove_columns("negative"))
    wanted = [(cosine(a, b) - score / 5) ** 2 for a, b, score in zip(first, second, ROWS["score"], strict=True)]
    assert loss == pytest.approx(sum(wanted) / 3, abs=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_partners_are_picked_among_those_of_the_batch(checkpoint: Checkpoint, symmetric: bool) -> None:
    rows = ROWS.remove_columns(["negative", "score"])
    loss, (first, second) = found_loss(checkpoint("bert"), rows, temperature=0.1, symmetric=symmetric)
    wanted = info_nce(first, second, 0.1)
    if symmetric:
        wanted = (wanted + info_nce(second, first, 0.1)) / 2
    assert loss == pytest.approx(wanted, abs=1e-5)


def test_hard_negatives_are_candidates_too(checkpoint: Checkpoint) -> None:
    """Supervised SimCSE, Gao et al. 2021, equation 5: positives and negatives of all rows stand in the sum."""
    loss, (first, second, third) = found_loss(checkpoint("bert"), ROWS.remove_columns("score"))
    assert loss == pytest.approx(info_nce(first, np.concatenate([second, third]), 0.05), abs=1e-5)


def test_matryoshka_is_the_mean_over_cut_vectors(checkpoint: Checkpoint) -> None:
    rows = ROWS.remove_columns(["negative", "score"])
    loss, (first, second) = found_loss(checkpoint("bert"), rows, dimensions=[4, 16])
    wanted = [info_nce(first[:, :cut], second[:, :cut], 0.05) for cut in (4, 16)]
    assert loss == pytest.approx(sum(wanted) / 2, abs=1e-5)


def test_a_text_is_no_negative_of_its_twin(checkpoint: Checkpoint) -> None:
    """Two rows with the same partner: neither is pushed away from it."""
    twins = Dataset.from_dict({"text": ["kind staff", "rude"], "text_pair": ["a film", "a film"]})
    loss, _ = found_loss(checkpoint("bert"), twins)
    assert loss == pytest.approx(0.0, abs=1e-6)


def test_unsupervised_simcse_compares_two_dropouts_of_a_text(checkpoint: Checkpoint) -> None:
    rows = ROWS.select_columns(["text"])
    task, tokenizer = resolved(rows), AutoTokenizer.from_pretrained(checkpoint("bert"))
    assert task.objective == "simcse"
    model = AutoModel.from_pretrained(checkpoint("bert")).train()
    batch = task.collator(tokenizer)(task.encode(rows, tokenizer, 32).to_list())
    output = task.forward(model, batch)
    first, second = (output["logits"][:, place].detach().double().numpy() for place in (0, 1))
    assert not np.allclose(first, second)
    loss = task.loss(output, batch, criterion=OWN, items=task.items(batch))
    assert float(loss.detach()) == pytest.approx(info_nce(first, second, 0.05), abs=1e-5)


def test_ranks_are_counted_among_all_partners(checkpoint: Checkpoint) -> None:
    rows = ROWS.remove_columns(["negative", "score"])
    task, tokenizer = resolved(rows), AutoTokenizer.from_pretrained(checkpoint("bert"))
    model = AutoModel.from_pretrained(checkpoint("bert")).eval()
    features = task.encode(rows, tokenizer, 32)
    outputs = read_batch(model, task.collator(tokenizer)(features.to_list()), task=task)
    scored = task.decode(outputs, Encoded(rows, features, tokenizer))
    _, (first, second) = found_loss(checkpoint("bert"), rows)
    similar = [[cosine(one, two) for two in second] for one in first]
    wanted = [sorted(row, reverse=True).index(row[place]) + 1 for place, row in enumerate(similar)]
    assert scored.predictions.tolist() == wanted


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_pooling_reads_no_padding(padding_side: str) -> None:
    tokens = torch.tensor([[1.0, -4.0], [3.0, 8.0]])
    padding = torch.full((1, 2), 99.0)
    parts = [padding, tokens] if padding_side == "left" else [tokens, padding]
    mask = torch.tensor([[0, 1, 1] if padding_side == "left" else [1, 1, 0]])
    hidden = torch.cat(parts)[None]
    wanted = {"mean": [2.0, 2.0], "cls": [1.0, -4.0], "last": [3.0, 8.0], "max": [3.0, 8.0]}
    assert {how: pooled(hidden, mask, how)[0].tolist() for how in wanted} == wanted  # type: ignore[arg-type] # literals


def test_what_has_no_effect_is_dropped(checkpoint: Checkpoint) -> None:
    """BERT's pooler would get no gradient."""
    head = resolved(ROWS).head()
    spec = ModelSpec(id=str(checkpoint("bert")))
    loaded = load_model(spec, head, storage=Storage(torch.float32))
    assert loaded.head_modules == ()
    names = {name for name, _ in loaded.model.named_parameters()}
    assert names == {name for name, _ in skeleton(spec, head).model.named_parameters()}
    assert not any("pooler" in name for name in names)


def test_held_out_rows_decide_how_they_are_scored() -> None:
    splits = DatasetDict(train=ROWS.select_columns(["text"]), test=ROWS.remove_columns("negative"))
    task: Any = tasks.build("sentence_embedding").resolved(splits)
    assert (task.objective, task.evaluation) == ("simcse", "similarity")
    assert task.default_metrics == ("spearman", "pearson")
    pairs: Any = resolved(ROWS.remove_columns(["negative", "score"]))
    assert pairs.default_metrics[0] == "mean_reciprocal_rank"


def test_answers_are_vectors_or_similarities(checkpoint: Checkpoint) -> None:
    task, tokenizer = resolved(ROWS), AutoTokenizer.from_pretrained(checkpoint("bert"))
    model = AutoModel.from_pretrained(checkpoint("bert")).eval()
    given = {"single": ["kind staff"], "pair": [("kind staff", "kind staff")]}
    answers = {}
    for name, inputs in given.items():
        rows = task.rows(inputs)
        features = task.encode(rows, tokenizer, 32)
        outputs = read_batch(model, task.collator(tokenizer)(features.to_list()), task=task)
        (answers[name],) = task.answers(outputs, Encoded(rows, features, tokenizer))
    assert np.linalg.norm(answers["single"]["embedding"]) == pytest.approx(1.0, abs=1e-5)
    assert answers["pair"]["similarity"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (["text", "text_pair"], {"objective": "scores"}, r"no column 'score'.*objective 'scores'.*data\.columns"),
        (["text"], {"objective": "pairs"}, r"no column 'text_pair', which the objective 'pairs' needs"),
        (["text_pair", "score"], {}, r"no column 'text'"),
    ],
)
def test_absent_columns_are_named(columns: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        resolved(ROWS.select_columns(columns), **options)


def test_held_out_rows_without_partners_are_refused() -> None:
    splits = DatasetDict(train=ROWS.select_columns(["text"]), test=ROWS.select_columns(["text"]))
    with pytest.raises(DataError, match=r"split 'test' has no column 'text_pair', which 'retrieval' needs"):
        tasks.build("sentence_embedding").resolved(splits)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (6.0, r"the score 6\.0 is not between 0\.0 and 5\.0; correct it or  task\.score_range"),
        (-1.0, r"the score -1\.0 is not between"),
        ("high", r"the score 'high' is no number"),
        (float("nan"), r"the score nan is no number"),
    ],
)
def test_illegal_scores_are_named(score: Any, message: str) -> None:
    rows = Dataset.from_dict({"text": ["a"], "text_pair": ["b"], "score": [score]})
    ((place, problem),) = resolved(ROWS).row_problems(rows).items()
    assert place == 0
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_range": [5, 0]}, r"score_range \[5.0, 0.0\] goes down"),
        ({"temperature": 0}, "temperature"),
        ({"dimensions": [0]}, "dimensions"),
        ({"pooling": "sum"}, "pooling"),
    ],
)
def test_illegal_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.build({"name": "sentence_embedding", **options})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("kind staff", "give a list of inputs"),
        ([3], r"input 0 is 3; give a string"),
        ([("a", "b", "c")], r"input 0 is"),
        (["a", ("b", "c")], "some inputs are single texts and some are pairs"),
    ],
)
def test_illegal_inputs_are_refused(inputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        resolved(ROWS).rows(inputs)


def test_bases_that_cannot_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(CapabilityError, match="is both"):
        resolved(ROWS).suited(AutoConfig.from_pretrained(checkpoint("t5")))
    with pytest.raises(RecipeError, match=r"task\.dimensions: 9999 is more than the \d+ dimensions"):
        resolved(ROWS, pooling=None, dimensions=[9999]).suited(AutoConfig.from_pretrained(checkpoint("bert")))


@pytest.mark.parametrize(
    ("training", "problem"),
    [
        ({"batch_size": 8, "accumulation_steps": 2}, "accumulation_steps"),
        ({"batch_size": 1, "accumulation_steps": 1}, "batch_size"),
    ],
)
def test_batches_that_cannot_be_compared_are_refused(training: dict[str, int], problem: str) -> None:
    pairs = resolved(ROWS.remove_columns(["negative", "score"]))
    unfit = pairs.training_problem(batching="random", **training)
    assert unfit is not None
    assert unfit[0] == problem
    assert resolved(ROWS).training_problem(batching="random", **training) is None
