"""Choices: loss and decoding against transformers, labels and choices by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoModelForMultipleChoice, AutoTokenizer

from peftkit.errors import CapabilityError, DataError
from peftkit.losses import losses
from peftkit.outputs import read_batch
from peftkit.tasks import Encoded, Task, tasks

Checkpoint = Callable[[str], Path]
ROWS = Dataset.from_list(
    [
        {"question": "How was the soup?", "choices": ["cold", "a film", "rude"], "label": 2},
        {"question": "Who loved the film?", "choices": ["a very long and generous soup", "Anna"], "label": 0},
    ]
)
LETTERED = "Who came?\nBo did not.\nOptions:\n(A) Anna Berg\n(B) nobody \n(C) 北京"


def resolved(rows: Dataset = ROWS) -> Task:
    return tasks.build("multiple_choice").resolved(DatasetDict(train=rows))


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_loss_and_probabilities_are_those_of_transformers(checkpoint: Checkpoint, name: str) -> None:
    """Each row alone, in the shape that transformers knows; the batch has rows of three and two choices."""
    task, tokenizer = resolved(), AutoTokenizer.from_pretrained(checkpoint(name))
    torch.manual_seed(0)
    model = AutoModelForMultipleChoice.from_pretrained(checkpoint(name)).eval()
    features = task.encode(ROWS, tokenizer, 48)
    wanted, shares = [], []
    for row in ROWS:
        pairs = tokenizer([row["question"]] * len(row["choices"]), row["choices"], padding=True, return_tensors="pt")
        with torch.no_grad():
            output = model(**{key: value[None] for key, value in pairs.items()}, labels=torch.tensor([row["label"]]))
        wanted.append(output.loss)
        shares.append(output.logits[0].softmax(0).numpy())
    batch = task.collator(tokenizer)(features.to_list())
    with torch.no_grad():
        output = task.forward(model, batch)
        found = task.loss(output, batch, criterion=losses.build("cross_entropy"), items=task.items(batch))
    torch.testing.assert_close(found, torch.stack(wanted).mean(), atol=1e-5, rtol=0)
    outputs = read_batch(model, batch, task=task)
    encoded = Encoded(ROWS, features, tokenizer)
    for answer, row, expected in zip(task.answers(outputs, encoded), ROWS, shares, strict=True):
        assert answer["probabilities"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert answer["index"] == int(expected.argmax())
        assert answer["choice"] == row["choices"][answer["index"]]
        assert answer["probability"] == max(answer["probabilities"])
    scored = task.decode(outputs, encoded)
    assert scored.predictions.tolist() == [int(expected.argmax()) for expected in shares]
    assert scored.references.tolist() == [2, 0]
    assert scored.losses == pytest.approx(np.array([float(loss) for loss in wanted]), abs=1e-5)


@pytest.mark.parametrize("label", [1, 1.0, "B", "b", "(B)", " (b) ", "nobody"])
def test_labels_are_indices_letters_or_texts(checkpoint: Checkpoint, label: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("bert"))
    apart = {"question": "Who came?\nBo did not.", "choices": ["Anna Berg", "nobody", "北京"], "label": label}
    inside = {"question": LETTERED, "label": label}
    one, two = (resolved().encode(Dataset.from_list([row]), tokenizer, 48)[0] for row in (apart, inside))
    assert one["labels"] == 1
    assert one == two
    assert resolved().row_problems(Dataset.from_list([apart])) == {}


def test_the_text_of_a_choice_goes_before_its_letter(checkpoint: Checkpoint) -> None:
    rows = Dataset.from_list([{"question": "Which?", "choices": ["B", "A"], "label": "A"}])
    assert resolved().encode(rows, AutoTokenizer.from_pretrained(checkpoint("bert")), 48)[0]["labels"] == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 2}, "the label 2 is no index of the 2 choices, which are counted from 0"),
        ({"label": -1}, "the label -1 is no index"),
        ({"label": "C"}, "the label 'C' is neither the text nor the letter of one of the 2 choices"),
        ({"label": "(C)"}, "the label '(C)' is neither"),
        ({"label": "maybe"}, "the label 'maybe' is neither"),
        ({"label": "1"}, "the label '1' is neither"),
        ({"choices": ["yes"]}, "there are 1 choices in the column choices, and two or more are needed"),
        ({"choices": []}, "there are 0 choices in the column choices"),
        ({"choices": None}, "there are 0 choices as lines (A) ..., (B) ... of the question"),
        ({"choices": ["yes", " "]}, "choice 1 is ' ', not a text"),
        ({"choices": ["yes", None]}, "choice 1 is None, not a text"),
        ({"choices": ["yes", "yes"]}, "the choice 'yes' stands there twice"),
        ({"choices": "yes, no"}, "choices is 'yes, no', not a list of texts"),
    ],
)
def test_rows_that_cannot_be_learnt(row: dict[str, Any], message: str) -> None:
    whole = {"question": "Was it?", "choices": ["yes", "no"], "label": 0} | row
    assert message in resolved().row_problems(Dataset.from_list([whole]))[0]


@pytest.mark.parametrize(("label", "message"), [(True, "no index"), ([0], "no index"), (0.5, "no whole number")])
def test_cells_that_are_no_labels(label: Any, message: str) -> None:
    assert message in str(resolved().label_problem(label))


@pytest.mark.parametrize("value", [5, ("a",), ("a", "b", "c"), {"choices": ["a", "b"]}, None])
def test_inputs_of_other_shapes_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"input 1 is .*; give a pair \(question, list of choices\), or a mapping"):
        resolved().rows([LETTERED, value])
    with pytest.raises(DataError, match=r"input 0: there are 0 choices as lines \(A\)"):
        resolved().rows(["Who came?"])


def test_reports_show_what_can_be_asked_again() -> None:
    task = resolved()
    again = task.rows([task.input_of(task.shown(ROWS[0]))])[0]
    assert again == {"question": ROWS[0]["question"], "choices": ROWS[0]["choices"]}
    assert (task.describe(2), task.describe(26)) == ("C", "26")


def test_bases_without_such_a_head_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(CapabilityError, match="the base model is a llama, for which transformers has no head"):
        resolved().suited(AutoConfig.from_pretrained(checkpoint("llama")))


def test_missing_columns_are_told_of() -> None:
    with pytest.raises(DataError, match=r"split 'train' has no column 'label' \(it has: question, choices\)"):
        resolved(ROWS.remove_columns("label"))
