"""Span corruption: the paper's example, counts and lengths of spans, the loss against T5's own, bad bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from peftkit.errors import CapabilityError, DataError
from peftkit.losses import losses
from peftkit.models import skeleton
from peftkit.outputs import read_batch
from peftkit.recipe import ModelSpec
from peftkit.tasks import DRAW, ROW, Encoded, tasks
from peftkit.tasks.span_corruption import SpanCorruption, apart, sentinels

TEXTS = [
    "we loved the soup and the kind staff of the house by the sea",
    "a dull mess of a film that nobody had asked for",
    "the music is lovely and the plot is not",
]
ROWS = Dataset.from_dict({"text": TEXTS})


@pytest.fixture
def tokenizer(tiny_t5: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_t5)


def test_the_example_of_the_paper() -> None:
    """Figure 2: "for inviting" and "last" are missing from "Thank you for inviting me to your party last week."."""
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    x, y, z = 100, 101, 102
    missing = np.array([word in ("for", "inviting", "last") for word in words])

    def written(tokens: list[int]) -> str:
        return " ".join({x: "<X>", y: "<Y>", z: "<Z>"}.get(token) or words[token] for token in tokens)

    text, target = apart(range(10), missing, [x, y, z])
    assert written(text) == "Thank you <X> me to your party <Y> week"
    assert written(target) == "<X> for inviting <Y> last <Z>"


def test_missing_ends_have_sentinels_too() -> None:
    assert apart([1, 2, 3, 4], np.array([True, False, False, True]), [7, 8, 9]) == ([7, 2, 3, 8], [7, 1, 8, 4])
    assert apart([1, 2], np.array([False, False]), [7]) == ([1, 2], [7])


@pytest.mark.parametrize(("length", "tokens", "spans"), [(512, 77, 26), (100, 15, 5), (20, 3, 1), (4, 1, 1), (2, 1, 1)])
def test_15_percent_are_missing_in_spans_of_3(length: int, tokens: int, spans: int) -> None:
    """What T5's random_spans_noise_mask gives for these lengths: round(0.15 n), round of that / 3."""
    task = SpanCorruption()
    draws = [task._missing(np.random.default_rng(seed), length) for seed in range(300)]
    around = [np.append(missing[-1], missing).astype(int) for missing in draws]
    assert {int(missing.sum()) for missing in draws} == {tokens}
    assert {int((np.diff(missing) == 1).sum()) for missing in around} == {spans}
    if length == 512:
        rate = np.mean(draws, axis=0)
        assert abs(rate - tokens / length).max() < 0.11  # 5 standard deviations of 0.021: no place is preferred


def test_a_single_token_stays() -> None:
    assert SpanCorruption()._missing(np.random.default_rng(0), 1).tolist() == [False]


def test_text_and_target_hold_every_token_once(tokenizer: Any) -> None:
    task, markers = SpanCorruption(), set(sentinels(tokenizer))
    features = task.encode(ROWS, tokenizer, 24).to_list()
    whole = [token for feature in features for token in feature["input_ids"]]
    end = tokenizer.eos_token_id
    assert [token for token in whole if token != end] == [
        token for text in TEXTS for token in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    batch = task.collator(tokenizer)(features)
    assert batch["input_ids"].shape[1] <= 24
    for row, feature in enumerate(features):
        text = batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()
        target = batch["labels"][row][batch["labels"][row] != -100].tolist()
        assert text[-1] == target[-1] == end
        assert put_together(text[:-1], target[:-1], markers) == feature["input_ids"]


def put_together(text: list[int], target: list[int], markers: set[int]) -> list[int]:
    spans: dict[int, list[int]] = {}
    for token in target:
        if token in markers:
            here = spans.setdefault(token, [])
        else:
            here.append(token)
    return [token for given in text for token in (spans[given] if given in markers else [given])]


def test_spans_are_new_in_each_epoch_and_fixed_in_evaluation(tokenizer: Any) -> None:
    task = SpanCorruption()
    features = task.encode(ROWS, tokenizer, 24).to_list()
    collate = task.collator(tokenizer)

    def drawn(*seeds: Any) -> list[list[int]]:
        given = [[{**feature, **({DRAW: seed} if seed else {})} for feature in features] for seed in seeds]
        return [collate(rows)["labels"].tolist() for rows in given]

    first, second, again, fixed, still_fixed = drawn([0, 0], [0, 1], [0, 1], None, None)
    assert first != second == again
    assert fixed == still_fixed


def test_loss_equals_that_of_transformers(tiny_t5: Path, tokenizer: Any) -> None:
    task = SpanCorruption()
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).eval()
    batch = task.collator(tokenizer)(task.encode(ROWS, tokenizer, 24).to_list())
    with torch.no_grad():
        own = model(**{name: batch[name] for name in batch if name != ROW}).loss
        output = task.forward(model, batch)
        found = task.loss(output, batch, criterion=losses.build("cross_entropy"), items=task.items(batch))
    assert found.item() == pytest.approx(own.item(), abs=1e-5)
    read = np.array(read_batch(model, batch, task=task))
    assert read[:, 0].sum() / read[:, 1].sum() == pytest.approx(own.item(), abs=1e-5)


def test_answers_put_what_was_written_behind_each_sentinel_in_its_place(tokenizer: Any) -> None:
    task = SpanCorruption()
    first, second = sentinels(tokenizer)[:2]
    rows = task.rows(["a <extra_id_0> film and a <extra_id_1> soup", "the plot"])
    encoded = Encoded(rows, task.encode(rows, tokenizer, 48), tokenizer)
    dull, cold = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("dull", "cold"))
    written = [[tokenizer.pad_token_id, first, *dull, second, *cold, tokenizer.eos_token_id], [tokenizer.pad_token_id]]
    answers = task.answers(written, encoded)
    assert answers[0]["fills"] == ["dull", "cold"]
    assert answers[0]["text"].split() == ["a", "dull", "film", "and", "a", "cold", "soup"]
    assert answers[1] == {"text": "the plot", "fills": []}


def test_more_spans_than_sentinels_are_refused(tokenizer: Any) -> None:
    rows = Dataset.from_dict({"text": TEXTS * 20})
    with pytest.raises(DataError, match=r"model.max_length 300 needs 17 sentinels, and T5Tokenizer has only 10 "):
        SpanCorruption().encode(rows, tokenizer, 300)


def test_bases_that_cannot_do_it_are_refused(tiny_bert: Path) -> None:
    with pytest.raises(CapabilityError, match="has no architecture for AutoModelForSeq2SeqLM"):
        skeleton(ModelSpec(id=str(tiny_bert)), SpanCorruption().head())
    with pytest.raises(DataError, match=r"BertTokenizer has no sentinels .* take a base such as T5"):
        sentinels(AutoTokenizer.from_pretrained(tiny_bert))


BAD_OPTIONS = {
    "nothing missing": {"noise_density": 0},
    "everything missing": {"noise_density": 1},
    "spans below one": {"mean_span_length": 0.5},
    "no answer": {"max_new_tokens": 0},
    "negative seed": {"draw_seed": -1},
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_refused(case: str) -> None:
    with pytest.raises(ValueError, match=next(iter(BAD_OPTIONS[case]))):
        tasks.build({"name": "span_corruption", **BAD_OPTIONS[case]})


BAD_INPUTS = {"one text": ("a film", "give a list"), "a number": ([3], "input 0 is 3"), "none": ([None], "input 0")}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_are_named(case: str) -> None:
    given, message = BAD_INPUTS[case]
    with pytest.raises(DataError, match=message):
        SpanCorruption().rows(given)


def test_answers_are_no_metric(tokenizer: Any) -> None:
    task = SpanCorruption()
    features = task.encode(ROWS, tokenizer, 24)
    with pytest.raises(DataError, match="score it by perplexity and token_accuracy"):
        task.references(Encoded(ROWS, features, tokenizer))
