"""Tags of words: alignment, loss and decoding, against transformers and by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from transformers import AutoModelForTokenClassification, AutoTokenizer

from peftkit.errors import DataError, RecipeError
from peftkit.layers.extended import model_class
from peftkit.losses import losses
from peftkit.outputs import read_batch
from peftkit.predictor import load
from peftkit.recipe import Recipe
from peftkit.tasks import Encoded, Task, tasks
from peftkit.tasks.word_alignment import encode_words
from peftkit.training import RunOptions, run

Checkpoint = Callable[[str], Path]
TOKENS = [["Anna", "Bergstrand", "lives"], ["extraordinarily", "lovely"]]
TAGS = [["B-person", "I-person", "O"], ["O", "B-word"]]
ROWS = Dataset.from_dict({"tokens": TOKENS, "tags": TAGS})
NAMES = ("O", "B-person", "I-person", "B-word", "I-word")


def resolved(rows: Dataset = ROWS, **options: Any) -> Task:
    return tasks.build({"name": "token_classification", **options}).resolved(DatasetDict(train=rows))


def tokenizer_of(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def test_scheme_and_tags_come_from_the_data() -> None:
    assert resolved().label_names == NAMES
    assert resolved(learn_as="BIOES").label_names[0] == "O"
    assert len(resolved(learn_as="BIOES").label_names) == 9
    plain = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [["NOUN", "VERB"]]})
    assert resolved(plain).default_metrics == ("tag_accuracy",)
    numbered = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["O", "B-x", "I-x"]))})
    rows = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [[1, 2]]}, features=numbered)
    assert resolved(rows).label_names == ("O", "B-x", "I-x")


@pytest.mark.parametrize(("given", "learn_as"), [("BIO", "BIOES"), ("IOB1", None)])
def test_numbers_keep_their_tags_when_converted(given: str, learn_as: str | None) -> None:
    """The numbers stand for the data's tags, also where others are learnt."""
    names = ["I-x", "O", "B-y", "I-y", "B-x"]
    cells = [[4, 0, 1, 2]] if given == "BIO" else [[0, 0, 1, 3]]
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=names))})
    rows = Dataset.from_dict({"tokens": [["a", "b", "c", "d"]], "tags": cells}, features=features)
    task = resolved(rows, scheme=given, learn_as=learn_as)
    assert task.label_problem(cells[0]) is None
    wanted = ["B-x", "E-x", "O", "S-y"] if learn_as == "BIOES" else ["B-x", "I-x", "O", "B-y"]
    assert list(task.references(Encoded(rows, rows, None))[0]) == wanted  # type: ignore[arg-type] # not asked
    assert set(wanted) < set(task.label_names)


@pytest.mark.parametrize(
    ("cell", "labels", "message"),
    [
        ([0, 10], None, "the tag 0 is a number; say in task.labels which tags the numbers stand for"),
        ([0, 9], ["O", "B-x"], "the tag 9 is not among the 2 of task.labels"),
        (1, None, "1 is no list of tags"),
        ([True], ["O", "B-x"], "the tag True is no text"),
    ],
)
def test_numbers_without_tags_are_told_with_their_row(cell: Any, labels: Any, message: str) -> None:
    rows = Dataset.from_dict({"tokens": [["a", "b"]], "tags": [cell]})
    assert resolved(rows, labels=labels).label_problem(cell) == message


@pytest.mark.parametrize("model", ["bert", "roberta", "gpt2", "llama", "distilbert"])
@pytest.mark.parametrize("subwords", ["first", "all"])
def test_each_word_is_learnt_at_its_tokens(checkpoint: Checkpoint, model: str, subwords: str) -> None:
    tokenizer = tokenizer_of(checkpoint(model))
    task = resolved(label_subwords=subwords)
    features = task.encode(ROWS, tokenizer, 48)
    for words, tags, feature in zip(TOKENS, TAGS, features, strict=True):
        firsts = [place for place, flag in enumerate(feature["word"]) if flag]
        assert len(firsts) == len(words)
        ends = [*firsts[1:], None]
        for word, tag, start, end in zip(words, tags, firsts, ends, strict=True):
            ids = [token for token in feature["input_ids"][start:end] if token not in tokenizer.all_special_ids]
            if tokenizer.unk_token_id not in ids:
                assert tokenizer.decode(ids).replace(" ", "").lower() == word.lower().replace(" ", "")
            labels = feature["labels"][start:end][: len(ids)]
            assert task.label_names[labels[0]] == tag
            inner = [label if label == -100 else task.label_names[label] for label in labels[1:]]
            inside = tag.replace("B-", "I-")
            assert set(inner) <= ({-100} if subwords == "first" else {-100, inside})
            if subwords == "all" and model == "bert":  # others may have a token of a blank alone
                assert -100 not in inner


@pytest.mark.parametrize("model", ["bert", "roberta", "llama"])
def test_words_without_tokens_keep_their_place(checkpoint: Checkpoint, model: str) -> None:
    rows = [["a", "\u200b", "\u00ad", "film"], ["\u200b"], ["", "x"]]
    _, places = encode_words(rows, tokenizer_of(checkpoint(model)), max_length=48)
    for words, found in zip(rows, places, strict=True):
        assert sorted({word for word in found if word is not None}) == list(range(len(words)))


def test_loss_is_that_of_transformers(checkpoint: Checkpoint) -> None:
    task, tokenizer = resolved(label_subwords="all"), tokenizer_of(checkpoint("bert"))
    base = AutoModelForTokenClassification.from_pretrained(checkpoint("bert"), **task.head().config).eval()
    batch = task.collator(tokenizer)(task.encode(ROWS, tokenizer, 48).to_list())
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "labels")}
        wanted = base(**inputs).loss
        output = task.forward(base, batch)
        found = task.loss(output, batch, criterion=losses.build("cross_entropy"), items=task.items(batch))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_loss_of_a_crf_is_the_likelihood_of_each_row(checkpoint: Checkpoint) -> None:
    """Each row alone, its words picked by hand, in the formula of the paper."""
    from peftkit.layers.crf import log_partition, path_score

    task, tokenizer = resolved(crf=True), tokenizer_of(checkpoint("bert"))
    model = crf_model(task, checkpoint("bert"))
    batch = task.collator(tokenizer)(task.encode(ROWS, tokenizer, 48).to_list())
    with torch.no_grad():
        output = task.forward(model, batch)
        found = task.loss(output, batch, criterion=None, items=task.items(batch))
        losses = []
        for row, tags in enumerate(TAGS):
            chosen = output["logits"][row][batch["word"][row].bool()][None]
            labels = torch.tensor([[task.label_names.index(tag) for tag in tags]])
            mask = torch.ones_like(labels, dtype=torch.bool)
            losses.append(log_partition(chosen, mask, model.crf()) - path_score(chosen, labels, mask, model.crf()))
    torch.testing.assert_close(found, torch.stack(losses).sum() / 5, atol=1e-5, rtol=0)


def test_a_row_whose_words_were_all_cut_off_adds_nothing(checkpoint: Checkpoint) -> None:
    task, tokenizer = resolved(crf=True), tokenizer_of(checkpoint("bert"))
    model = crf_model(task, checkpoint("bert"))
    whole, cut = (task.encode(ROWS, tokenizer, length).to_list()[0] for length in (48, 2))
    assert not any(cut["word"])
    losses = []
    for features in ([whole], [whole, cut]):
        batch = task.collator(tokenizer)(features)
        with torch.no_grad():
            losses.append(task.loss(task.forward(model, batch), batch, criterion=None, items=task.items(batch)))
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=0)


def crf_model(task: Task, folder: Path) -> Any:
    from transformers import AutoConfig

    head = task.head()
    config = AutoConfig.from_pretrained(folder, **head.config)
    model = model_class(head.auto_class, config, head.modules).from_pretrained(folder, config=config).eval()
    torch.manual_seed(1)
    for weight in model.crf.parameters():
        torch.nn.init.normal_(weight)
    return model


@pytest.mark.parametrize("crf", [False, True])
def test_predictions_keep_to_the_scheme(checkpoint: Checkpoint, crf: bool) -> None:
    from peftkit.tasks.tag_schemes import problem

    task, tokenizer = resolved(crf=crf, learn_as="BIOES"), tokenizer_of(checkpoint("bert"))
    torch.manual_seed(0)
    model = crf_model(task, checkpoint("bert")) if crf else None
    model = model or AutoModelForTokenClassification.from_pretrained(checkpoint("bert"), **task.head().config).eval()
    rows = Dataset.from_dict({"tokens": [[f"word{place}" for place in range(12)]] * 6})
    features = task.encode(rows, tokenizer, 48)
    outputs = read_batch(model, task.collator(tokenizer)(features.to_list()), task=task)
    answers = task.answers(outputs, Encoded(rows, features, tokenizer))
    assert all(problem(answer["tags"], "BIOES") is None for answer in answers)
    free = task.model_copy(update={"constrained": False})
    answers = free.answers(
        read_batch(model, task.collator(tokenizer)(features.to_list()), task=free), Encoded(rows, features, tokenizer)
    )
    assert any(problem(answer["tags"], "BIOES") is not None for answer in answers)


def test_words_that_were_cut_off_count_as_outside(checkpoint: Checkpoint) -> None:
    task, tokenizer = resolved(), tokenizer_of(checkpoint("bert"))
    model = AutoModelForTokenClassification.from_pretrained(checkpoint("bert"), **task.head().config).eval()
    rows = Dataset.from_dict({"tokens": [["Anna"] * 30], "tags": [["B-person"] * 30]})
    features = task.encode(rows, tokenizer, 12)
    outputs = read_batch(model, task.collator(tokenizer)(features.to_list()), task=task)
    scored = task.decode(outputs, Encoded(rows, features, tokenizer))
    assert len(scored.predictions[0]) == 30
    there = len(outputs[0].labels)
    assert 0 < there < 30
    assert scored.predictions[0][there:] == ["O"] * (30 - there)


@pytest.mark.training
@pytest.mark.parametrize("crf", [False, True])
def test_names_are_learnt_and_found_in_text(checkpoint: Checkpoint, tmp_path: Path, crf: bool) -> None:
    lines = "Anna\tB-person\nBerg\tI-person\nlives\tO\nin\tO\nOslo\tB-place\n\nthe\tO\nfilm\tO\nof\tO\nBo\tB-person\n"
    (tmp_path / "train.conll").write_text("\n".join([lines] * 6))
    (tmp_path / "validation.conll").write_text(lines)
    recipe = Recipe.from_values(
        {
            "model": {"id": str(checkpoint("bert")), "max_length": 32},
            "task": {"name": "token_classification", "crf": crf},
            "data": {"name": "files"} | {split: f"{tmp_path}/{split}.conll" for split in ("train", "validation")},
            "method": "lora",
            "training": {"epochs": 25, "batch_size": 4, "learning_rate": 0.02},
        },
        origin="test",
    )
    result = run(recipe, tmp_path / "run", options=RunOptions(show_progress=False))
    assert result.splits["validation"].metrics["span_f1"] == 1.0
    text = "Anna Berg lives in Oslo."
    answer = load(tmp_path / "run")([text])[0]
    found = {(span["type"], text[slice(*span["characters"])]) for span in answer["spans"]}
    assert found >= {("person", "Anna Berg"), ("place", "Oslo")}
    assert all(0 < span["score"] <= 1 for span in answer["spans"])


@pytest.mark.parametrize(
    ("tags", "options", "message"),
    [
        (
            ["O", "I-person"],
            {},
            "'I-person' at word 1 may not follow 'O' in the scheme BIO; correct it, or set  task",
        ),
        ("O O", {}, "'O O' is no list of tags"),
        (["O", None], {}, "the tag None is no text"),
        (["O", 1.5], {}, "the tag 1.5 is no text"),
        (["B-animal"], {}, "the tag 'B-animal' is not among those of the training rows"),
        (["X-person"], {}, "the tag 'X-person' of word 0 is none of the scheme BIO"),
        ([9], {}, "the tag 9 is not among the 5 of task.labels"),
        ([-1], {}, "the tag -1 is not among the 5"),
    ],
)
def test_tags_that_cannot_be_learnt(tags: Any, options: Any, message: str) -> None:
    assert message in str(resolved(**options).label_problem(tags))
    assert resolved().label_problem(["O", "B-person"]) is None


def test_repaired_tags_open_a_span() -> None:
    rows = Dataset.from_dict({"tokens": [["a", "b", "c"]], "tags": [["O", "I-x", "I-x"]]})
    task = resolved(rows, scheme="BIO", repair=True, labels=["O", "B-x", "I-x"])
    assert task.label_problem(["O", "I-x", "I-x"]) is None
    assert task.references(Encoded(rows, rows, None))[0] == ["O", "B-x", "I-x"]  # type: ignore[arg-type] # not asked


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["a", "b"], "there are 2 words and 1 tags"),
        ("a", "tokens is 'a', not a list of words; split it, or use the format conll"),
    ],
)
def test_rows_whose_words_do_not_fit_their_tags(tokens: Any, message: str) -> None:
    rows = Dataset.from_dict({"tokens": [tokens], "tags": [["O"]]})
    assert resolved().row_problems(rows) == {0: message}


@pytest.mark.parametrize("value", [5, ["a", 1], {"words": ["a"]}, None])
def test_inputs_of_other_shapes_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"input 1 is .*; give a list of words, a text, or a mapping with 'tokens'"):
        resolved().rows(["fine", value])


@pytest.mark.parametrize(
    ("task", "further", "message"),
    [
        ({"crf": True, "label_subwords": "all"}, {}, "a CRF runs over words, not over their parts"),
        ({"crf": True}, {"loss": "focal"}, "'focal' works with classes or flags, and the labels of task .* are own"),
        ({"scheme": "none", "learn_as": "BIO"}, {}, "scheme none marks no spans"),
        ({"scheme": "BILOU"}, {}, "BILOU"),
    ],
)
def test_options_that_exclude_each_other(task: Any, further: Any, message: str) -> None:
    values = {
        "model": "m",
        "task": {"name": "token_classification", **task},
        "data": {"name": "files", "train": "a.conll"},
        "method": "lora",
    }
    with pytest.raises(RecipeError, match=message):
        Recipe.from_values(values | further, origin="test")


def test_missing_columns_are_told_of() -> None:
    with pytest.raises(DataError, match=r"split 'train' has no column 'tags' \(it has: tokens\)"):
        resolved(Dataset.from_dict({"tokens": [["a"]]}))
