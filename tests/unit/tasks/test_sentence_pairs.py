"""Next sentences and sentence order: segments by hand, pairs, the loss against BertForPreTraining's own, bad rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from scipy.stats import binom
from transformers import AutoConfig, AutoTokenizer, BertForPreTraining

from peftkit.errors import CapabilityError, DataError, RecipeError
from peftkit.losses import losses
from peftkit.outputs import read_batch
from peftkit.recipe import Recipe
from peftkit.tasks import DRAW, ROW, Encoded, Task, tasks
from peftkit.tasks.documents import tokenized
from peftkit.tasks.masked_lm_nsp import MaskedLMWithNextSentence
from peftkit.tasks.segments import pairs, segments
from peftkit.tasks.sentence_order import SentenceOrder
from peftkit.training import RunOptions, run

TEXTS = [
    "we loved the soup. the staff was kind! was the film long?",
    "nobody had asked for it. rude",
    "the music is lovely and the plot is not",
    "a film. a plot. a soup. a staff. a town.",
]
ROWS = Dataset.from_dict({"text": TEXTS})
NEXT = "next_sentence_label"
BOTH: list[Task] = [MaskedLMWithNextSentence(), SentenceOrder()]


@pytest.fixture
def tokenizer(tiny_bert: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bert)


def document(*lengths: int) -> np.ndarray:
    """Sentences of these lengths; ids count up from 0."""
    sentences = np.repeat(np.arange(len(lengths)), lengths)
    return np.stack([np.arange(len(sentences)), sentences, sentences], axis=1)


@pytest.mark.parametrize(
    ("lengths", "size", "expected"),
    [
        ((2, 2, 2), 4, [4, 2]),
        ((3, 3, 3), 4, [3, 3, 3]),
        ((10, 1), 4, [4, 4, 3]),
        ((1, 10), 4, [1, 4, 4, 2]),
        ((2, 3), 9, [2, 3]),
        ((1, 1, 1, 5), 20, [3, 5]),
        ((6,), 20, [3, 3]),
        ((2,), 20, [1, 1]),
        ((9,), 3, [3, 3, 3]),
    ],
)
def test_segments_are_whole_sentences_where_they_fit(lengths: tuple[int, ...], size: int, expected: list[int]) -> None:
    found = segments(document(*lengths), size)
    assert [len(part) for part in found] == expected
    assert np.concatenate(found)[:, 0].tolist() == list(range(sum(lengths)))


def test_every_segment_is_in_a_pair() -> None:
    parts = [np.empty((1, 3))] * 5
    assert list(pairs(parts[:2])) == [(0, 1)]
    assert list(pairs(parts[:4])) == [(0, 1), (2, 3)]
    assert list(pairs(parts)) == [(0, 1), (2, 3), (3, 4)]


def test_sentences_end_at_their_marks_and_at_lines(tokenizer: Any) -> None:
    text = 'we loved it. "was it long?" yes!\nno'
    found = tokenized(Dataset.from_dict({"text": [text]}), tokenizer, sentences=True)[0]
    by_sentence = [tokenizer.decode(found[found[:, 2] == number, 0]) for number in range(found[-1, 2] + 1)]
    expected = ["we loved it.", '"was it long?"', "yes!", "no"]
    assert [part for part in by_sentence if part] == [tokenizer.decode(ids(tokenizer, part)) for part in expected]


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def parted(tokenizer: Any, feature: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The two texts of [CLS] a [SEP] b [SEP], told apart by the separators and by the token types."""
    given, separator = feature["input_ids"], tokenizer.sep_token_id
    assert given[0] == tokenizer.cls_token_id
    first = given.index(separator)
    assert given.index(separator, first + 1) == len(given) - 1
    assert feature["token_type_ids"] == [0] * (first + 1) + [1] * (len(given) - first - 1)
    return given[1:first], given[first + 1 : -1]


def test_next_segments_follow_and_random_ones_are_of_another_text(tokenizer: Any) -> None:
    features = MaskedLMWithNextSentence().encode(ROWS, tokenizer, 24).to_list()
    whole = [ids(tokenizer, text) for text in TEXTS]
    assert {feature[NEXT] for feature in features} == {0, 1}
    assert {feature[ROW] for feature in features} == {0, 1, 2, 3}
    for feature in features:
        first, second = parted(tokenizer, feature)
        assert holds(whole[feature[ROW]], first)
        if feature[NEXT] == 0:
            assert holds(whole[feature[ROW]], first + second)
        else:
            assert any(holds(other, second) for row, other in enumerate(whole) if row != feature[ROW])


def holds(whole: list[int], part: list[int]) -> bool:
    return any(whole[start : start + len(part)] == part for start in range(len(whole)))


def test_swapped_segments_are_neighbours_too(tokenizer: Any) -> None:
    features = SentenceOrder().encode(ROWS, tokenizer, 24).to_list()
    whole = [ids(tokenizer, text) for text in TEXTS]
    assert {feature["labels"] for feature in features} == {0, 1}
    for feature in features:
        first, second = parted(tokenizer, feature)
        in_order = second + first if feature["labels"] else first + second
        assert holds(whole[feature[ROW]], in_order)


@pytest.mark.parametrize("task", BOTH, ids=lambda task: task.name)
def test_half_of_the_pairs_are_of_each_kind_and_draws_repeat(task: Task, tokenizer: Any) -> None:
    rows = Dataset.from_dict({"text": [f"{text} {number}" for number in range(200) for text in TEXTS]})
    column = NEXT if NEXT in task.encode(ROWS, tokenizer, 24).column_names else "labels"
    first = task.encode(rows, tokenizer, 24)
    low, high = binom.interval(0.999, len(first), 0.5)
    assert low <= sum(first[column]) <= high
    assert task.encode(rows, tokenizer, 24).to_dict() == first.to_dict()
    other = task.model_copy(update={"draw_seed": 1}).encode(rows, tokenizer, 24)
    assert other[column] != first[column]


def test_loss_equals_that_of_transformers(tiny_bert: Path, tokenizer: Any) -> None:
    task = MaskedLMWithNextSentence()
    model = BertForPreTraining.from_pretrained(tiny_bert).eval()
    batch = task.collator(tokenizer)(task.encode(ROWS, tokenizer, 24).to_list())
    with torch.no_grad():
        own = model(**{name: batch[name] for name in batch if name != ROW}).loss
        output = task.forward(model, batch)
        found = task.loss(output, batch, criterion=losses.build("cross_entropy"), items=task.items(batch))
    assert found.item() == pytest.approx(own.item(), abs=1e-5)
    assert task.items(batch).tolist() == [(batch["labels"] != -100).sum(), len(batch["labels"])]


def test_micro_batches_of_unlike_numbers_of_masks_add_up(tiny_bert: Path, tokenizer: Any) -> None:
    task, criterion = MaskedLMWithNextSentence(), losses.build("cross_entropy")
    model = BertForPreTraining.from_pretrained(tiny_bert).eval()
    features = task.encode(ROWS, tokenizer, 24).to_list()
    collate = task.collator(tokenizer)
    batches = [collate(features), collate(features[:1]), collate(features[1:])]
    items = task.items(batches[0])
    assert torch.equal(items, task.items(batches[1]) + task.items(batches[2]))
    with torch.no_grad():
        whole, one, rest = (
            task.loss(task.forward(model, batch), batch, criterion=criterion, items=items) for batch in batches
        )
    assert (one + rest).item() == pytest.approx(whole.item(), abs=1e-5)


def test_masked_tokens_and_next_sentences_are_scored_together(tiny_bert: Path, tokenizer: Any) -> None:
    task = MaskedLMWithNextSentence()
    model = BertForPreTraining.from_pretrained(tiny_bert).eval()
    features = task.encode(ROWS, tokenizer, 24)
    outputs = read_batch(model, task.collator(tokenizer)(features.to_list()), task=task)
    scored = task.decode(outputs, Encoded(ROWS, features, tokenizer))
    assert scored.references.tolist() == features[NEXT]
    assert scored.likelihood is not None
    assert scored.likelihood.shape == (len(features), 3)
    following = torch.tensor([logits for _, logits in outputs])
    assert scored.predictions.tolist() == following.argmax(dim=1).tolist()
    own = torch.nn.functional.cross_entropy(following, torch.tensor(features[NEXT]), reduction="none").numpy()
    masked = scored.likelihood[:, 0] / scored.likelihood[:, 1]
    assert np.allclose(scored.losses, own + masked, atol=1e-5)


def test_masks_of_pairs_are_new_in_each_epoch(tokenizer: Any) -> None:
    task = MaskedLMWithNextSentence(whole_word=True)
    features = task.encode(ROWS, tokenizer, 24).to_list()
    drawn = [
        task.collator(tokenizer)([{**feature, DRAW: [0, epoch, 0]} for feature in features])["labels"]
        for epoch in (0, 1, 1)
    ]
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize("task", BOTH, ids=lambda task: task.name)
def test_pairs_of_an_application_are_encoded_as_the_tokenizer_does(task: Task, tokenizer: Any) -> None:
    rows = task.rows([("a film", "a long soup"), {"text": "we", "text_pair": "left"}])
    features = task.encode(rows, tokenizer, 24)
    expected = tokenizer(["a film", "we"], ["a long soup", "left"])
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        assert features[name] == expected[name]
    answer = task.answers([(None, [2.0, 0.0]) if task is BOTH[0] else [2.0, 0.0]], Encoded(rows, features, tokenizer))
    assert answer[0]["label"] == task.label_names[0]
    assert answer[0]["probability"] == pytest.approx(1 / (1 + np.exp(-2)))


BAD_INPUTS = {
    "one text": ("a film", "give a list of pairs"),
    "single texts": (["a film"], "input 0 is 'a film'; give a pair of strings"),
    "three texts": ([("a", "b"), ("a", "b", "c")], "input 1 is"),
    "no second text": ([{"text": "a"}], "input 0 is"),
    "numbers": ([(1, 2)], "input 0 is"),
}


@pytest.mark.parametrize("task", BOTH, ids=lambda task: task.name)
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_are_named(task: Task, case: str) -> None:
    given, message = BAD_INPUTS[case]
    with pytest.raises(DataError, match=message):
        task.rows(given)  # type: ignore[arg-type] # that is the mistake


BAD_FILES = {
    "a single word": (
        "masked_lm_nsp",
        "we left. we came.\n\nrude\n",
        "row 1 .*is a single word, which cannot be parted",
    ),
    "a single word to order": ("sentence_order", "rude\n\nwe left. we came.\n", "row 0 .*'rude' is a single word"),
    "a single text": ("masked_lm_nsp", "we left. we came.\n", "row 0 .*it is the only text"),
    "nothing visible": ("sentence_order", "\u200b\n\nwe left. we came.\n", "no visible text in column 'text'"),
}


def recipe(model: Path, file: Path, task: Any, **model_options: Any) -> Recipe:
    values = {
        "name": "pairs",
        "model": {"id": str(model), "max_length": 24, **model_options},
        "task": task,
        "data": {"name": "files", "train": str(file), "text_rows": "paragraph"},
        "method": "lora",
        "training": {"max_steps": 1},
    }
    return Recipe.from_values(values, origin="test")


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_texts_are_named_with_their_place(case: str, tiny_bert: Path, tmp_path: Path) -> None:
    task, content, message = BAD_FILES[case]
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        run(recipe(tiny_bert, tmp_path / "a.txt", task), tmp_path / "run", options=RunOptions(show_progress=False))


def test_a_length_without_room_for_two_texts_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("we left. we came.\n\nthe film. the soup.\n")
    made = recipe(tiny_bert, tmp_path / "a.txt", "sentence_order", max_length=4)
    with pytest.raises(DataError, match=r"model.max_length is 4, and special tokens alone take 3.*raise it"):
        run(made, tmp_path / "run", options=RunOptions(show_progress=False))


def test_bases_without_both_heads_are_refused(tiny_roberta: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_roberta)
    with pytest.raises(
        CapabilityError, match=r"needs an architecture with a head for next sentences \(bert.*'roberta'"
    ):
        MaskedLMWithNextSentence().suited(config)


@pytest.mark.parametrize("name", ["masked_lm_nsp", "sentence_order"])
def test_unknown_options_are_refused(name: str, tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="pack"):
        recipe(tiny_bert, tmp_path / "a.txt", {"name": name, "pack": True})


def test_columns_are_checked() -> None:
    with pytest.raises(DataError, match=r"split 'test' has no column 'text' \(it has: body\)"):
        tasks.build("sentence_order").resolved(DatasetDict({"test": Dataset.from_dict({"body": ["a"]})}))
