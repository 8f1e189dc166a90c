"""Masked language modelling: what is masked, how often, when anew, and the loss against transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import binom
from transformers import AutoModelForMaskedLM, AutoTokenizer

from peftkit.errors import CapabilityError, DataError, RecipeError
from peftkit.labels import IGNORED
from peftkit.losses import losses
from peftkit.models import skeleton
from peftkit.outputs import read_batch
from peftkit.recipe import ModelSpec, Recipe
from peftkit.tasks import DRAW, ROW, Encoded
from peftkit.tasks.masked_lm import MaskedLM
from peftkit.tasks.masking import Masking
from peftkit.training import RunOptions, run
from peftkit.training.batching import FreshDraws

TEXTS = [
    "we loved the soup and the kind staff",
    "a dull mess of a film that nobody had asked for",
    "unforgettable",
    "the music is lovely and the plot is not",
]
ROWS = Dataset.from_dict({"text": TEXTS})
QUIET = RunOptions(show_progress=False)
Checkpoint = Callable[[str], Path]


@pytest.fixture
def tokenizer(tiny_bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert)


def blocks(task: MaskedLM, tokenizer: Any, size: int = 16) -> list[dict[str, Any]]:
    return task.encode(ROWS, tokenizer, size).to_list()


def test_blocks_hold_every_token_between_the_special_ones(tokenizer: Any) -> None:
    ends = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    for task in (MaskedLM(), MaskedLM(pack=False)):
        features = blocks(task, tokenizer)
        assert all(ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id for ids in inputs(features))
        assert max(map(len, inputs(features))) == 16
        inside = [token for ids in inputs(features) for token in ids if token not in ends]
        assert inside == [token for text in TEXTS for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    packed = sum(ids[1:-1].count(tokenizer.sep_token_id) for ids in inputs(blocks(MaskedLM(), tokenizer)))
    assert packed == len(TEXTS) - 1


def inputs(features: list[dict[str, Any]]) -> list[list[int]]:
    return [feature["input_ids"] for feature in features]


def test_shares_are_those_of_the_paper(tokenizer: Any) -> None:
    """15 % are chosen; of these 80 % become the mask, 10 % another token, 10 % stay (99.9 % binomial bounds)."""
    masking = Masking.of(tokenizer, probability=0.15, seed=0)
    tokens, repeats = masking.ordinary[:100], 400
    drawn = [masking.apply({"input_ids": tokens, DRAW: [0, 0, place]}) for place in range(repeats)]
    chosen = np.array([feature["labels"] for feature in drawn]) != IGNORED
    assert (chosen.sum(axis=1) == 15).all()
    assert np.ptp(chosen.mean(axis=0)) < 0.12  # no place is preferred: 5 standard deviations of 0.018 each way
    ids = np.array([feature["input_ids"] for feature in drawn])[chosen]
    original = np.array([feature["labels"] for feature in drawn])[chosen]
    count = len(ids)
    masked, same = (ids == masking.mask).sum(), (ids == original).sum()
    accidental = 0.1 / len(masking.ordinary)
    for found, share in ((masked, 0.8), (same, 0.1 + accidental), (count - masked - same, 0.1 - accidental)):
        low, high = binom.interval(0.999, count, share)
        assert low <= found <= high


def test_special_tokens_are_neither_found_nor_put_in(tokenizer: Any) -> None:
    task = MaskedLM(mask_probability=0.9)
    special = set(tokenizer.all_special_ids)
    collate = task.collator(tokenizer)
    rows = Dataset.from_dict({"text": [*TEXTS, f"a {tokenizer.mask_token} film {tokenizer.sep_token} ends"]})
    features = task.encode(rows, tokenizer, 16).to_list()
    for epoch in range(20):
        batch = collate([{**feature, DRAW: [0, epoch, place]} for place, feature in enumerate(features)])
        before = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in inputs(features)], batch_first=True)
        for token in special:
            assert (batch["labels"][before == token] == IGNORED).all()
        changed = batch["input_ids"] != before
        assert (batch["labels"][changed] == before[changed]).all()
        assert set(batch["input_ids"][changed].tolist()) & special <= {tokenizer.mask_token_id}


def test_at_least_one_token_is_masked(tokenizer: Any) -> None:
    features = MaskedLM(pack=False, mask_probability=0.01).encode(Dataset.from_dict({"text": ["soup"]}), tokenizer, 16)
    batch = MaskedLM(mask_probability=0.01).collator(tokenizer)(features.to_list())
    assert (batch["labels"] != IGNORED).sum() == 1


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_whole_words_are_masked_together(checkpoint: Checkpoint, name: str) -> None:
    words = AutoTokenizer.from_pretrained(checkpoint(name))
    task = MaskedLM(whole_word=True, mask_probability=0.3)
    features = task.encode(ROWS, words, 24).to_list()
    collate, parts = task.collator(words), 0
    for epoch in range(10):
        batch = collate([{**feature, DRAW: [0, epoch, place]} for place, feature in enumerate(features)])
        for feature, labels in zip(features, batch["labels"], strict=True):
            pairs = zip(
                feature["words"], feature["words"][1:], feature["input_ids"], feature["input_ids"][1:], strict=False
            )
            for place, (word, following, here, there) in enumerate(pairs):
                if word == following and not {here, there} & set(words.all_special_ids):
                    assert (labels[place] == IGNORED) == (labels[place + 1] == IGNORED)
                    parts += labels[place].item() != IGNORED
    assert parts > 5


def test_masks_are_new_in_each_epoch_and_fixed_in_evaluation(tokenizer: Any) -> None:
    task = MaskedLM()
    features = task.encode(ROWS, tokenizer, 16)
    collate = task.collator(tokenizer)
    rows = FreshDraws(features, seed=3)

    def drawn(epoch: int, places: range) -> list[list[int]]:
        rows.set_epoch(epoch)
        return collate([rows[place] for place in places])["labels"].tolist()

    everything = range(len(features))
    assert drawn(0, everything) != drawn(1, everything)
    assert drawn(1, everything) == drawn(1, everything)
    assert drawn(1, range(1, 3)) == drawn(1, everything)[1:3]  # whatever shares the batch
    evaluate = task.evaluation_collator(tokenizer)
    assert torch.equal(evaluate(features.to_list())["labels"], evaluate(features.to_list())["labels"])
    other = MaskedLM(draw_seed=1).evaluation_collator(tokenizer)
    assert not torch.equal(evaluate(features.to_list())["labels"], other(features.to_list())["labels"])


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_loss_equals_that_of_transformers(checkpoint: Checkpoint, name: str) -> None:
    folder, task = checkpoint(name), MaskedLM()
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    words = AutoTokenizer.from_pretrained(folder)
    batch = task.collator(words)(task.encode(ROWS, words, 16).to_list())
    with torch.no_grad():
        own = model(**{name: batch[name] for name in batch if name != ROW}).loss
        output = task.forward(model, batch)
        found = task.loss(output, batch, criterion=losses.build("cross_entropy"), items=task.items(batch))
    assert found.item() == pytest.approx(own.item(), abs=1e-5)
    assert len(task.logits(output)) == task.items(batch)
    read = np.stack(read_batch(model, batch, task=task))
    assert read[:, 0].sum() / read[:, 1].sum() == pytest.approx(own.item(), abs=1e-5)


def test_candidates_are_the_most_probable_tokens(tiny_bert: Path, tokenizer: Any) -> None:
    task = MaskedLM()
    model = AutoModelForMaskedLM.from_pretrained(tiny_bert).eval()
    rows = task.rows(["a [MASK] film", "soup and [MASK] and [MASK]"])
    encoded = Encoded(rows, task.encode(rows, tokenizer, 16), tokenizer)
    outputs = read_batch(model, task.collator(tokenizer)(encoded.features.to_list()), task=task)
    first, second = task.answers(outputs, encoded)
    with torch.no_grad():
        probabilities = model(**tokenizer("a [MASK] film", return_tensors="pt")).logits[0, 2].softmax(dim=-1)
    best = probabilities.argmax().item()
    assert first["fills"][0][0] == {
        "token": tokenizer.decode([best]),
        "probability": pytest.approx(probabilities[best].item(), abs=1e-6),
    }
    assert first["text"] == f"a {tokenizer.decode([best])} film"
    assert len(second["fills"]) == 2


BAD_INPUTS = {
    "no mask": (["a [MASK] film", "a film"], 16, r"input 1 has no \[MASK\] among its first 14 tokens"),
    "a mask behind the end": (["a b c d [MASK]"], 6, r"input 0 has no \[MASK\] among its first 4 tokens"),
    "one text": ("a [MASK]", 16, "give a list of inputs"),
    "a number": ([1], 16, "input 0 is 1; give a string"),
    "too short": (["a [MASK]"], 2, r"model.max_length is 2, and special tokens alone take 2; raise it"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_are_named(case: str, tokenizer: Any) -> None:
    given, size, message = BAD_INPUTS[case]
    with pytest.raises(DataError, match=message):
        MaskedLM().encode(MaskedLM().rows(given), tokenizer, size)


def recipe(model: Path, file: Path, **sections: Any) -> Recipe:
    values = {
        "name": "mlm",
        "model": {"id": str(model), "max_length": 16},
        "task": "masked_lm",
        "data": {"name": "files", "train": str(file), "validation": str(file), "text_rows": "paragraph"},
        "method": {"name": "lora", "dropout": 0.1},
        "training": {"epochs": 3, "batch_size": 4, "learning_rate": 0.01, "logging_steps": 1},
    }
    return Recipe.from_values(values | sections, origin="test")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS * 5))
    return tmp_path / "a.txt"


BAD_RECIPES = {
    "share of zero": ({"task": {"name": "masked_lm", "mask_probability": 0}}, "mask_probability"),
    "share of one": ({"task": {"name": "masked_lm", "mask_probability": 1}}, "mask_probability"),
    "negative seed": ({"task": {"name": "masked_lm", "draw_seed": -1}}, "draw_seed"),
    "an unknown metric": ({"training": {"best_metric": "accuracy"}}, "'accuracy' is not among the metrics"),
}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_bad_recipes_are_refused(case: str, tiny_bert: Path, corpus: Path) -> None:
    sections, message = BAD_RECIPES[case]
    with pytest.raises(RecipeError, match=message):
        recipe(tiny_bert, corpus, **sections)


def test_bases_without_masks_are_refused(tiny_gpt2: Path, corpus: Path) -> None:
    with pytest.raises(CapabilityError, match="has no architecture for AutoModelForMaskedLM"):
        skeleton(ModelSpec(id=str(tiny_gpt2)), MaskedLM().head())
    with pytest.raises(DataError, match="has no mask token, so nothing can be masked; take a base"):
        Masking.of(AutoTokenizer.from_pretrained(tiny_gpt2), probability=0.15, seed=0)


@pytest.mark.training
def test_a_head_that_the_base_lacks_trains_and_is_saved(tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    BertModel.from_pretrained(tiny_bert).save_pretrained(tmp_path / "bare")
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path / "bare")
    bare = skeleton(ModelSpec(id=str(tmp_path / "bare")), MaskedLM().head())
    assert bare.head_modules == ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm")
    assert skeleton(ModelSpec(id=str(tiny_bert)), MaskedLM().head()).head_modules == ()
    result = run(recipe(tmp_path / "bare", corpus, method="head_only"), tmp_path / "run", options=QUIET)
    assert result.model.trainable_parameters == 32 * 32 + 32 + 2 * 32
