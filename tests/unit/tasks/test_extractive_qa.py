"""Answers from contexts: windows, loss and decoding, against transformers and by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from peftkit.data import ORIGIN, sources
from peftkit.errors import DataError
from peftkit.tasks import ROW, Encoded, Task, tasks

Checkpoint = Callable[[str], Path]
CONTEXT = "Anna Berg loved the film. The soup was cold, but 北京 was far."


def row(question: str, context: str, answer: str | None) -> dict[str, Any]:
    found = {"text": [], "answer_start": []}
    if answer is not None:
        found = {"text": [answer], "answer_start": [context.index(answer)]}
    return {"question": question, "context": context, "answers": found}


ROWS = Dataset.from_list([row("Who loved it?", CONTEXT, "Anna Berg"), row("How was the soup?", CONTEXT, "cold")])


def resolved(rows: Dataset = ROWS, **options: Any) -> Task:
    return tasks.build({"name": "extractive_qa", **options}).resolved(DatasetDict(train=rows))


@pytest.fixture
def tokenizer(checkpoint: Checkpoint) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint("bert"))


def test_loss_is_that_of_transformers(checkpoint: Checkpoint, tokenizer: Any) -> None:
    """On rows of equal length: at padding transformers lets the softmax leak, so that other rows change the loss."""
    task = resolved()
    model = AutoModelForQuestionAnswering.from_pretrained(checkpoint("bert")).eval()
    same = Dataset.from_list([ROWS[0], ROWS[0] | {"answers": ROWS[1]["answers"]}])
    batch = task.collator(tokenizer)(task.encode(same, tokenizer, 64).to_list())
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        starts, ends = batch["labels"].unbind(1)
        wanted = model(**inputs, start_positions=starts, end_positions=ends).loss
        found = task.loss(task.forward(model, batch), batch, criterion=None, items=task.items(batch))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", ["bert", "roberta", "llama", "t5"])
@pytest.mark.parametrize("answer", ["Anna Berg", "cold", "北京", "film. The soup"])
def test_labels_point_at_the_answer(checkpoint: Checkpoint, model: str, answer: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint(model))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = Dataset.from_list([row("Who?", CONTEXT, answer)])
    feature = resolved(rows).encode(rows, tokenizer, 128)[0]
    first, last = feature["labels"]
    assert CONTEXT[feature["starts"][first] : feature["ends"][last]].strip() == answer


def test_long_contexts_are_read_in_windows_that_overlap(tokenizer: Any) -> None:
    context = " ".join(f"word{place}" for place in range(60)) + " Oslo"
    rows = Dataset.from_list([row("Where?", context, "Oslo"), ROWS[1]])
    features = resolved(rows, stride=6).encode(rows, tokenizer, 40)
    windows = [feature for feature in features if feature[ROW] == 0]
    assert len(windows) > 2
    covered = set()
    for feature in windows:
        assert len(feature["input_ids"]) <= 40
        spans = zip(feature["starts"], feature["ends"], strict=True)
        characters = {at for start, end in spans if start >= 0 for at in range(start, end)}
        assert not covered or characters & covered
        covered |= characters
    assert {at for at, character in enumerate(context) if character != " "} <= covered
    # the answer is learnt where it is, and nowhere else
    assert [feature["labels"] != [0, 0] for feature in windows] == [False] * (len(windows) - 1) + [True]


def test_what_is_not_read_as_a_whole_is_told(tokenizer: Any) -> None:
    words = " ".join(f"word{place}" for place in range(60))
    question = "How long was the very long and very generous film? " * 4
    rows = Dataset.from_list([row("Where?", words, "word3"), row(question, words, None), row("Where?", words, words)])
    task = resolved(rows, stride=6)
    tokens = len(tokenizer(question, add_special_tokens=False)["input_ids"])
    assert task.unread(Encoded(rows, task.encode(rows, tokenizer, 40), tokenizer), 40) == {
        1: f"of the question's {tokens} tokens 16 are read; raise model.max_length",
        2: f"no window holds the whole answer {words!r}; raise task.stride",
    }
    asked = rows.remove_columns("answers")
    assert set(task.unread(Encoded(asked, task.encode(asked, tokenizer, 40), tokenizer), 40)) == {1}


def test_windows_of_a_row_do_not_depend_on_the_rows_beside_it(tokenizer: Any) -> None:
    context, question = "The film was long. " * 12, "How long was the very long and very generous film? " * 4
    alone = Dataset.from_list([row("Who?", context, None)])
    beside = Dataset.from_list([row("Who?", context, None), row(question, context, None)])
    one, two = (resolved(alone).encode(rows, tokenizer, 40).to_list() for rows in (alone, beside))
    assert one == [feature for feature in two if feature[ROW] == 0]


def features_of(logits: Any, spans: list[list[tuple[int, int]]], rows: list[int]) -> Any:
    features = {
        ROW: rows,
        "starts": [[start for start, _ in window] for window in spans],
        "ends": [[end for _, end in window] for window in spans],
        "labels": [[0, 0]] * len(rows),
    }
    outputs = [np.array(pair, np.float32) for pair in logits]
    return outputs, Dataset.from_dict(features)


def test_the_best_stretch_of_all_windows_is_the_answer() -> None:
    rows = Dataset.from_list([row("?", "aa bb cc dd", "aa")])
    spans = [[(-1, -1), (0, 2), (3, 5)], [(-1, -1), (6, 8), (9, 11)]]
    outputs, features = features_of([([0, 1, 2], [0, 3.5, 2]), ([0, 4, 0], [0, 1, 3])], spans, [0, 0])
    task = resolved(n_best=3)
    scored = task.decode(outputs, Encoded(rows, features, None))  # type: ignore[arg-type] # not asked
    assert scored.predictions.tolist() == ["cc dd"]  # 4 + 3
    answer = task.answers(outputs, Encoded(rows, features, None))[0]  # type: ignore[arg-type] # not asked
    assert (answer["start"], answer["end"]) == (6, 11)
    # ends before their starts are none: "bb".."aa" would have 2 + 3
    assert [one["answer"] for one in answer["n_best"]] == ["cc dd", "cc", "aa"]
    weights = np.exp([7.0, 5.0, 4.5])
    assert [one["score"] for one in answer["n_best"]] == pytest.approx(weights / weights.sum())


@pytest.mark.parametrize(("threshold", "answer"), [(0.0, ""), (1.5, "aa"), (-9.0, "")])
def test_no_answer_wins_by_more_than_the_threshold(threshold: float, answer: str) -> None:
    rows = Dataset.from_list([row("?", "aa bb", None)])
    outputs, features = features_of([([3, 2, 0], [2, 2, 0])], [[(-1, -1), (0, 2), (3, 5)]], [0])
    task = resolved(rows, no_answer_threshold=threshold)  # none scores 5, aa 4
    assert task.no_answer  # type: ignore[attr-defined] # of this task
    encoded = Encoded(rows, features, None)  # type: ignore[arg-type] # not asked
    assert task.decode(outputs, encoded).predictions.tolist() == [answer]
    assert task.answers(outputs, encoded)[0]["answer"] == answer
    sure = resolved(rows, no_answer=False)
    assert sure.decode(outputs, encoded).predictions.tolist() == ["aa"]


def test_long_answers_are_left_out() -> None:
    rows = Dataset.from_list([row("?", "aa bb cc", "aa")])
    outputs, features = features_of([([0, 5, 0, 0], [0, 1, 0, 5])], [[(-1, -1), (0, 2), (3, 5), (6, 8)]], [0])
    encoded = Encoded(rows, features, None)  # type: ignore[arg-type] # not asked
    assert resolved(max_answer_length=3).decode(outputs, encoded).predictions.tolist() == ["aa bb cc"]
    assert resolved(max_answer_length=2).decode(outputs, encoded).predictions.tolist() == ["aa"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            {"text": ["Bo"], "answer_start": [0]},
            "the answer 'Bo' is not at character 0, where 'An' stands; it is ",
        ),
        ({"text": ["cold"], "answer_start": [3]}, "is not at character 3, where 'a Be' stands; it stands at 39"),
        ({"text": ["cold"], "answer_start": [-1]}, "is not at character -1"),
        ({"text": ["cold"], "answer_start": [999]}, "is not at character 999, where '' stands"),
        ({"text": ["cold"], "answer_start": ["39"]}, "is not at character 39"),
        ({"text": ["cold", "soup"], "answer_start": [39]}, "give a list of texts and one of as many positions"),
        ({"text": "cold", "answer_start": 39}, "give a list of texts"),
        ({"text": [""], "answer_start": [0]}, "the answer '' is empty; leave the lists empty where there is none"),
        ({"text": ["cold"]}, "not a mapping with the lists text and answer_start"),
        ("cold", "answers is 'cold', not a mapping"),
        (None, "answers is None, not a mapping"),
    ],
)
def test_answers_that_are_not_where_they_should_be(answers: Any, message: str) -> None:
    task: Any = resolved(no_answer=False)
    assert message in task._answer_problem(CONTEXT, answers)
    assert "there is no answer" in task._answer_problem(CONTEXT, {"text": [], "answer_start": []})


def test_problems_are_given_by_row() -> None:
    wrong = Dataset.from_list([ROWS[0], ROWS[1] | {"answers": {"text": ["x"], "answer_start": [0]}}])
    assert list(resolved().row_problems(wrong)) == [1]


@pytest.mark.parametrize("value", ["Who?", ("a",), ("a", 5), {"question": "a"}, None])
def test_inputs_of_other_shapes_are_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"input 1 is .*; give a pair \(question, context\), or a mapping with both"):
        resolved().rows([("a", "b"), value])


def test_missing_columns_are_told_of() -> None:
    with pytest.raises(DataError, match=r"split 'train' has no column 'answers' \(it has: question, context\)"):
        resolved(ROWS.remove_columns("answers"))


SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Oslo",
            "paragraphs": [
                {
                    "context": "Oslo is cold.",
                    "qas": [
                        {"id": "q1", "question": "What?", "answers": [{"text": "Oslo", "answer_start": 0}]},
                        {"id": "q2", "question": "Who?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}


def test_squad_files_give_a_row_per_question(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(SQUAD, indent=1))
    rows = sources.build({"name": "files", "format": "squad", "train": str(path)}).load().splits["train"]
    assert rows["question"] == ["What?", "Who?"]
    assert rows["answers"] == [{"text": ["Oslo"], "answer_start": [0]}, {"text": [], "answer_start": []}]
    lines = path.read_text().split("\n")
    for name, origin in zip(rows["id"], rows[ORIGIN], strict=True):
        assert f'"{name}"' in lines[int(origin.rpartition(":")[2]) - 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no SQuAD file: the top has no list 'data'"),
        ('{"data": [{}]}', r"data\[0\] has no list 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"data\[0\]\.paragraphs\[0\]\.context is None, not a text"),
        ('{"data": []}', "holds no questions"),
        (
            '{"data": [{"paragraphs": [{"context": "a", "qas": [{"question": 5, "answers": []}]}]}]}',
            r"qas\[0\]\.question is 5, not a text",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "a", "qas": ["Who?"]}]}]}',
            r"qas\[0\]\.question is None, not a text",
        ),
    ],
)
def test_files_that_are_no_squad_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        sources.build({"name": "files", "format": "squad", "train": str(path)}).load()
