"""Causal language modelling: blocks by hand, the loss against transformers' own, likelihoods, bad rows and inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftkit.errors import CapabilityError, DataError, RecipeError
from peftkit.losses import losses
from peftkit.models import Storage, load_model, skeleton
from peftkit.outputs import read_batch
from peftkit.recipe import ModelSpec, Recipe
from peftkit.tasks import ROW, Encoded
from peftkit.tasks.causal_lm import CausalLM
from peftkit.tasks.documents import cut
from peftkit.training import RunOptions, run

TEXTS = ["we loved the soup", "a dull mess of a film", "rude"]
ROWS = Dataset.from_dict({"text": TEXTS})
Checkpoint = Callable[[str], Path]


@pytest.fixture
def tokenizer(tiny_gpt2: Path) -> Any:
    made = AutoTokenizer.from_pretrained(tiny_gpt2)
    made.pad_token = made.eos_token
    return made


def column(*values: int) -> np.ndarray:
    return np.array(values)[:, None]


def pieces(blocks: Any) -> list[tuple[list[int], int]]:
    return [(block.tokens[:, 0].tolist(), block.row) for block in blocks]


def test_packing_loses_nothing_and_knows_the_row_a_block_begins_in() -> None:
    documents = [column(1, 2, 3), column(4), column(5, 6, 7, 8)]
    assert pieces(cut(documents, 3, pack=True)) == [([1, 2, 3], 0), ([4, 5, 6], 1), ([7, 8], 2)]
    assert pieces(cut(documents, 3, pack=False)) == [([1, 2, 3], 0), ([4], 1), ([5, 6, 7], 2), ([8], 2)]


@pytest.mark.parametrize("size", [2, 7, 41, 1000])
def test_blocks_are_the_texts_closed_by_the_end_token(tokenizer: Any, size: int) -> None:
    features = CausalLM().encode(ROWS, tokenizer, size)
    expected = [token for text in TEXTS for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert [token for ids in features["input_ids"] for token in ids] == expected
    assert {len(ids) for ids in features["input_ids"][:-1]} <= {size}
    assert 1 <= len(features["input_ids"][-1]) <= size
    apart = CausalLM(pack=False).encode(ROWS, tokenizer, size)
    whole = {
        row: [t for ids, r in zip(apart["input_ids"], apart[ROW], strict=True) if r == row for t in ids]
        for row in range(3)
    }
    assert whole == {row: [*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for row, text in enumerate(TEXTS)}


def test_a_tokenizer_that_closes_texts_itself_is_not_doubled(tiny_bert: Path) -> None:
    words = AutoTokenizer.from_pretrained(tiny_bert)
    features = CausalLM().encode(ROWS, words, 1000)
    assert features["input_ids"][0] == [token for text in TEXTS for token in words(text)["input_ids"]]


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("pack", [True, False])
def test_loss_equals_that_of_transformers(checkpoint: Checkpoint, name: str, pack: bool) -> None:
    folder = checkpoint(name)
    task = CausalLM(pack=pack)
    decoder = {"is_decoder": True} if name == "bert" else {}
    model = AutoModelForCausalLM.from_pretrained(folder, **decoder).eval()
    words = AutoTokenizer.from_pretrained(folder)
    words.pad_token = words.pad_token or words.eos_token
    batch = task.collator(words)(task.encode(ROWS, words, 9).to_list())
    with torch.no_grad():
        own = model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
        output = task.forward(model, batch)
        found = task.loss(output, batch, criterion=losses.build("cross_entropy"), items=task.items(batch))
    assert found.item() == pytest.approx(own.item(), abs=1e-5)
    read = np.stack(read_batch(model, batch, task=task))
    assert read[:, 0].sum() / read[:, 1].sum() == pytest.approx(own.item(), abs=1e-5)
    assert read[:, 1].sum() == task.items(batch)


def test_the_end_token_is_learnt_although_it_pads(tokenizer: Any) -> None:
    task = CausalLM(pack=False)
    batch = task.collator(tokenizer)(task.encode(ROWS, tokenizer, 64).to_list())
    end = tokenizer.eos_token_id
    assert (batch["labels"] == end).sum(dim=1).tolist() == [1, 1, 1]
    assert (batch["input_ids"] == end).sum(dim=1).tolist()[2] > 1


def test_an_encoder_reads_forward_only(tiny_bert: Path) -> None:
    head = CausalLM().head()
    assert skeleton(ModelSpec(id=str(tiny_bert)), head).model.config.is_decoder
    model = load_model(ModelSpec(id=str(tiny_bert)), head, storage=Storage()).model.eval()
    ids = torch.tensor([[2, 7, 8, 9]])
    with torch.no_grad():
        first, second = model(ids).logits, model(torch.tensor([[2, 7, 8, 30]])).logits
    assert torch.equal(first[:, :3], second[:, :3])


def test_decoding_shows_blocks_and_keeps_their_rows(tokenizer: Any) -> None:
    task = CausalLM()
    features = task.encode(ROWS, tokenizer, 9)
    outputs = [np.array([4 * math.log(8.0), 4.0, 1.0])] * len(features)
    scored = task.decode(outputs, Encoded(ROWS, features, tokenizer))
    assert scored.predictions[0] == "perplexity 8.0 over 4 tokens"
    assert scored.references[0] == tokenizer.decode(features["input_ids"][0])
    assert scored.rows is not None
    assert scored.rows.tolist() == features[ROW]
    assert scored.likelihood is not None
    assert scored.likelihood[:, 1].sum() == 4 * len(features)


def test_answers_are_perplexities(tokenizer: Any) -> None:
    task = CausalLM()
    rows = task.rows(["good soup", {"text": "x"}])
    encoded = Encoded(rows, task.encode(rows, tokenizer, 64), tokenizer)
    found = task.answers([np.array([2 * math.log(3.0), 2.0, 0.0]), np.array([0.0, 0.0, 0.0])], encoded)
    assert found == [{"perplexity": pytest.approx(3.0), "tokens": 2}, {"perplexity": None, "tokens": 0}]


BAD_INPUTS = {
    "one text": ("soup", r"the inputs are 'soup'; give a list"),
    "a number": (["soup", 3], r"input 1 is 3; give a string"),
    "another column": ([{"body": "x"}], r"input 0 is .*; give a string, or a mapping with 'text'"),
    "an empty text": (["soup", ""], r"input 1 is empty; give it a text"),
    "no text": ([None], r"input 0 is None"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_are_named(case: str, tokenizer: Any) -> None:
    inputs, message = BAD_INPUTS[case]
    with pytest.raises(DataError, match=message):
        CausalLM().encode(CausalLM().rows(inputs), tokenizer, 64)


BAD_ROWS = {
    "no column": ({"body": ["x"]}, r"split 'train' has no column 'text' \(it has: body\); map it"),
    "numbers": ({"text": [1, 2]}, r"column 'text' of split 'train' holds int64, not text; map another"),
    "lists": ({"text": [["a"], ["b"]]}, r"column 'text' of split 'train' holds list, not text"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_columns_are_named(case: str) -> None:
    columns, message = BAD_ROWS[case]
    with pytest.raises(DataError, match=message):
        CausalLM().resolved(DatasetDict({"train": Dataset.from_dict(columns)}))


def recipe(model: Path, file: Path, **sections: Any) -> Recipe:
    values = {
        "name": "lm",
        "model": {"id": str(model), "max_length": 32},
        "task": "causal_lm",
        "data": {"name": "files", "train": str(file), "text_rows": "paragraph"},
        "method": "lora",
        "training": {"max_steps": 1},
    }
    return Recipe.from_values(values | sections, origin="test")


BAD_RECIPES = {
    "a metric of answers": ({"metrics": ["accuracy"]}, DataError, "predicts tokens, not answers; score it by perplex"),
    "an unknown option": ({"task": {"name": "causal_lm", "packing": True}}, RecipeError, "packing"),
    "a loss of numbers": ({"loss": "mean_squared_error"}, RecipeError, "labels of task 'causal_lm' are classes"),
    "balanced classes": (
        {"loss": {"name": "cross_entropy", "class_weights": [1.0, 2.0]}},
        RecipeError,
        "class_weights has 2 numbers",
    ),
}


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_bad_recipes_are_refused_before_training(case: str, tiny_gpt2: Path, tmp_path: Path) -> None:
    sections, error, message = BAD_RECIPES[case]
    (tmp_path / "a.txt").write_text("a film\n\nof the sea\n")
    with pytest.raises(error, match=message):
        run(
            recipe(tiny_gpt2, tmp_path / "a.txt", **sections), tmp_path / "run", options=RunOptions(show_progress=False)
        )


def test_a_base_without_such_a_head_is_refused(tiny_t5: Path) -> None:
    with pytest.raises(CapabilityError, match="has no architecture for AutoModelForCausalLM; choose a base"):
        skeleton(ModelSpec(id=str(tiny_t5)), CausalLM().head())


def test_a_tokenizer_without_end_token_is_refused(tiny_gpt2: Path) -> None:
    words = AutoTokenizer.from_pretrained(tiny_gpt2)
    words.eos_token = None
    with pytest.raises(DataError, match="has no end token to close texts with; name one as eos_token"):
        CausalLM().encode(ROWS, words, 64)


@pytest.mark.parametrize("ending", ["md", "rst", "py", "txt"])
def test_text_files_are_read_with_their_lines(ending: str, tmp_path: Path, tiny_gpt2: Path) -> None:
    (tmp_path / f"a.{ending}").write_text("one\ntwo\n\nthree\n")
    loaded = recipe(tiny_gpt2, tmp_path / f"*.{ending}").data.load()
    assert loaded.splits["train"]["text"] == ["one\ntwo", "three"]
    assert [origin.rpartition(":")[2] for origin in loaded.splits["train"]["__origin__"]] == ["1", "4"]
