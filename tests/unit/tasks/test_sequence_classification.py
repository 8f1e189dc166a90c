"""Sequence classification: head, encoding, decoding and answers, against the tokenizer and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from torch.nn import functional

from peftkit.errors import DataError
from peftkit.losses import losses
from peftkit.tasks import ROW, Encoded, tasks
from peftkit.tasks.sequence_classification import SequenceClassification

SINGLE = SequenceClassification(labels=["neg", "pos", "mixed"])
MULTI = SequenceClassification(labels=["a", "b", "c"], problem_type="multi_label")
REGRESSION = SequenceClassification(problem_type="regression")
ROWS, WIDTH = 41, 3


def labelled(references: Any) -> Encoded:
    return Encoded(Dataset.from_dict({}), Dataset.from_dict({"labels": references}), tokenizer=None)


UNLABELLED = Encoded(Dataset.from_dict({}), Dataset.from_dict({}), tokenizer=None)


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(scale=3, size=(ROWS, WIDTH)).astype(np.float32)


@pytest.fixture
def tokenizer(tiny_bert: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert)


def test_heads_carry_names_and_problem() -> None:
    head = SINGLE.head()
    assert head.auto_class == "AutoModelForSequenceClassification"
    assert head.peft_task_type == "SEQ_CLS"
    assert head.is_new
    assert head.config == {
        "num_labels": 3,
        "id2label": {0: "neg", 1: "pos", 2: "mixed"},
        "label2id": {"neg": 0, "pos": 1, "mixed": 2},
        "problem_type": "single_label_classification",
    }
    assert MULTI.head().config["problem_type"] == "multi_label_classification"
    assert REGRESSION.head().config["num_labels"] == 1
    assert REGRESSION.head().config["problem_type"] == "regression"


@pytest.mark.parametrize("task", [SINGLE, MULTI, REGRESSION], ids=lambda task: task.problem_type)
def test_head_fits_a_model_and_default_loss(task: SequenceClassification, tiny_bert: Path, tokenizer: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_bert, **task.head().config)
    labels = {"single_label": ["pos", "neg"], "multi_label": [["a"], []], "regression": [0.5, 2]}[task.problem_type]
    features = task.encode(Dataset.from_dict({"text": ["kind", "rude film"], "label": labels}), tokenizer, 16)
    batch = task.collator(tokenizer)([{k: v for k, v in row.items() if k != ROW} for row in features])
    targets = batch["labels"]
    with torch.no_grad():
        scores = task.logits(task.forward(model, batch))
        own = model(**batch).loss
    assert scores.shape == (2, max(1, len(task.label_names)))
    # transformers' loss for the same problem_type is the reference
    torch.testing.assert_close(losses.build(task.default_loss).compute(scores, targets, None), own)


def test_encode_is_the_tokenizers_own_encoding(tokenizer: Any) -> None:
    texts = ["The soup was lovely.", "", "A dull film, rude and slow"]
    features = SINGLE.encode(Dataset.from_dict({"text": texts, "label": ["pos", "neg", "mixed"]}), tokenizer, 32)
    expected = tokenizer(texts, truncation=True, max_length=32)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert list(features[name]) == expected[name]
    assert list(features["labels"]) == [1, 0, 2]
    assert list(features[ROW]) == [0, 1, 2]
    assert set(features.column_names) == {"input_ids", "attention_mask", "token_type_ids", "labels", ROW}


def test_encode_pairs(tokenizer: Any) -> None:
    rows = Dataset.from_dict({"label": ["pos"], "text_pair": ["rude"], "text": ["kind"]})
    features = SINGLE.encode(rows, tokenizer, 32)
    tokens = tokenizer.convert_ids_to_tokens(features[0]["input_ids"])
    assert tokens == ["[CLS]", "kind", "[SEP]", "rude", "[SEP]"]
    assert features[0]["token_type_ids"] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("pair", [False, True])
def test_encode_cuts_at_max_length(tokenizer: Any, pair: bool) -> None:
    columns = {"text": ["the film was slow and the cast was rude"]}
    if pair:
        columns["text_pair"] = ["the soup was cold"]
    features = SINGLE.encode(Dataset.from_dict(columns), tokenizer, 7)
    tokens = tokenizer.convert_ids_to_tokens(features[0]["input_ids"])
    assert len(tokens) == 7
    assert tokens[0] == "[CLS]"
    assert tokens.count("[SEP]") == 1 + pair
    whole = SINGLE.encode(Dataset.from_dict({"text": ["kind staff"]}), tokenizer, 7)
    assert len(whole[0]["input_ids"]) == 4


def test_encode_without_labels_makes_none(tokenizer: Any) -> None:
    assert "labels" not in SINGLE.encode(Dataset.from_dict({"text": ["kind"]}), tokenizer, 8).column_names


def test_encode_turns_numbers_in_text_columns_into_text(tokenizer: Any) -> None:
    # A CSV column of digits is read as integers.
    features = SINGLE.encode(Dataset.from_dict({"text": [12, 7]}), tokenizer, 8)
    assert tokenizer.decode(features[0]["input_ids"], skip_special_tokens=True) == tokenizer.decode(
        tokenizer("12")["input_ids"], skip_special_tokens=True
    )


@pytest.mark.parametrize("labels", [["pos"], None])
def test_encode_of_no_rows_is_empty(tokenizer: Any, labels: list[str] | None) -> None:
    rows = Dataset.from_dict({"text": ["a"], **({"label": labels} if labels else {})})
    features = SINGLE.encode(rows.select([]), tokenizer, 8)
    assert len(features) == 0


def test_encode_names_the_row_of_a_bad_label(tokenizer: Any) -> None:
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": ["pos", "neg", "bad"]})
    with pytest.raises(DataError, match=r"row 2: the label 'bad' is not among task.labels \(neg, pos, mixed\)"):
        SINGLE.encode(rows, tokenizer, 8)
    multi = Dataset.from_dict({"text": ["a", "b"], "label": [["a"], ["z", "b"]]})
    with pytest.raises(DataError, match="row 1: the label 'z' is not among"):
        MULTI.encode(multi, tokenizer, 8)


@pytest.mark.parametrize("column", ["text", "text_pair"])
def test_encode_names_the_row_of_a_missing_text(tokenizer: Any, column: str) -> None:
    rows = Dataset.from_dict({"text": ["a", "b"], "text_pair": ["c", "d"], column: ["e", None]})
    with pytest.raises(DataError, match=f"row 1: the column '{column}' is empty"):
        SINGLE.encode(rows, tokenizer, 8)


def test_collator_pads_to_the_longest_of_the_batch(tokenizer: Any) -> None:
    features = SINGLE.encode(Dataset.from_dict({"text": ["kind", "kind rude film"], "label": [0, 1]}), tokenizer, 32)
    batch = SINGLE.collator(tokenizer)(list(features))
    assert batch["input_ids"].shape == (2, 5)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [0, 1]
    assert batch[ROW].tolist() == [0, 1]


def test_decode_single_label_against_torch(logits: np.ndarray) -> None:
    references = np.random.default_rng(1).integers(WIDTH, size=ROWS)
    scored = SINGLE.decode(logits, labelled(references))
    wide = torch.from_numpy(logits).double()
    np.testing.assert_array_equal(scored.predictions, wide.argmax(1).numpy())
    np.testing.assert_array_equal(scored.references, references)
    expected = functional.cross_entropy(wide, torch.from_numpy(references), reduction="none")
    np.testing.assert_allclose(scored.losses, expected.numpy(), rtol=1e-12)
    np.testing.assert_allclose(scored.probabilities, wide.softmax(1).numpy(), rtol=1e-12)


def test_decode_multi_label_against_torch(logits: np.ndarray) -> None:
    references = np.random.default_rng(1).integers(2, size=(ROWS, WIDTH)).astype(np.float32)
    scored = MULTI.decode(logits, labelled(references))
    wide, flags = torch.from_numpy(logits).double(), torch.from_numpy(references).double()
    np.testing.assert_array_equal(scored.predictions, (wide > 0).int().numpy())
    np.testing.assert_array_equal(scored.references, references.astype(int))
    expected = functional.binary_cross_entropy_with_logits(wide, flags, reduction="none").mean(1)
    np.testing.assert_allclose(scored.losses, expected.numpy(), rtol=1e-12)
    np.testing.assert_allclose(scored.probabilities, wide.sigmoid().numpy(), rtol=1e-12)


def test_decode_regression() -> None:
    scored = REGRESSION.decode(np.array([[1.5], [-2.0]], np.float32), labelled(np.array([1.0, 1.0])))
    assert scored.predictions.tolist() == [1.5, -2.0]
    assert scored.losses.tolist() == [0.25, 9.0]
    assert scored.probabilities is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_decode_survives_extreme_logits(dtype: type) -> None:
    far = np.array([[60000.0, -60000.0, 0.0]], dtype)
    scored = SINGLE.decode(far, labelled(np.array([1])))
    # float16 has no 60000 exactly: its nearest is 60000 = 58.59375 * 1024
    assert scored.losses[0] == pytest.approx(120000, rel=1e-3)
    assert scored.probabilities is not None
    assert scored.probabilities[0].tolist() == [1.0, 0.0, 0.0]
    several = MULTI.decode(far, labelled(np.array([[0, 0, 1]])))
    assert several.losses[0] == pytest.approx((60000 + 0 + np.log(2)) / 3, rel=1e-3)
    assert np.isfinite(several.probabilities).all()


def test_decode_of_one_row_and_of_none() -> None:
    one = SINGLE.decode(np.zeros((1, 3), np.float32), labelled(np.array([2])))
    assert one.losses.tolist() == [pytest.approx(np.log(3))]
    assert len(SINGLE.decode(np.zeros((0, 3), np.float32), labelled(np.zeros(0, int))).predictions) == 0


def test_answers_name_labels_and_agree_with_decode(logits: np.ndarray) -> None:
    scored = SINGLE.decode(logits, labelled(np.zeros(ROWS, int)))
    answers = SINGLE.answers(logits, UNLABELLED)
    assert [answer["label"] for answer in answers] == [SINGLE.label_names[index] for index in scored.predictions]
    for answer, row in zip(answers, scored.probabilities, strict=True):
        assert answer["probabilities"] == dict(zip(("neg", "pos", "mixed"), row.tolist(), strict=True))
        assert answer["probability"] == max(row)
    several = MULTI.decode(logits, labelled(np.zeros((ROWS, WIDTH))))
    for answer, flags in zip(MULTI.answers(logits, UNLABELLED), several.predictions, strict=True):
        assert answer["labels"] == [name for name, flag in zip("abc", flags, strict=True) if flag]


def test_answers_agree_with_decode_where_probabilities_are_equal() -> None:
    # 1e-17 is lost in exp(), not in the comparison of logits
    near = np.array([[0.0, 1e-17, -5.0]])
    chosen = SINGLE.decode(near, labelled(np.array([0]))).predictions[0]
    assert SINGLE.answers(near, UNLABELLED)[0]["label"] == SINGLE.label_names[chosen]
    assert MULTI.answers(near, UNLABELLED)[0]["labels"] == ["b"]
    assert MULTI.decode(near, labelled(np.zeros((1, 3)))).predictions.tolist() == [[0, 1, 0]]


def test_answers_of_regression_are_plain_floats() -> None:
    assert REGRESSION.answers(np.array([[0.5]], np.float32), UNLABELLED) == [{"value": 0.5}]
    assert type(REGRESSION.answers(np.array([[0.5]], np.float32), UNLABELLED)[0]["value"]) is float


def test_describe_uses_words() -> None:
    assert SINGLE.describe(np.int64(2)) == "mixed"
    assert MULTI.describe(np.array([1, 0, 1])) == "a, c"
    assert MULTI.describe(np.array([0, 0, 0])) == "(none)"
    assert REGRESSION.describe(np.float64(2.34567)) == "2.346"


@pytest.mark.parametrize(
    ("inputs", "columns"),
    [
        (["a", ""], {"text": ["a", ""]}),
        ([("a", "b"), ["c", "d"]], {"text": ["a", "c"], "text_pair": ["b", "d"]}),
        ([{"text": "a", "label": 3}], {"text": ["a"]}),
        ([{"text_pair": "b", "text": "a"}], {"text": ["a"], "text_pair": ["b"]}),
        (("a",), {"text": ["a"]}),
        ([], {"text": []}),
    ],
)
def test_rows_of_an_application(inputs: Any, columns: dict[str, list[str]]) -> None:
    assert SINGLE.rows(inputs).to_dict() == columns


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["a", 3], r"input 1 is 3; give a string, a pair of strings, or a mapping with 'text'"),
        (["a", None], "input 1 is None"),
        ([("a", "b", "c")], r"input 0 is \('a', 'b', 'c'\)"),
        ([()], r"input 0 is \(\)"),
        ([{"body": "a"}], r"input 0 is \{'body': 'a'\}"),
        ([{"text": "a", "text_pair": None}], r"input 0 is \{'text': 'a', 'text_pair': None\}"),
        (["a", ("a", "b")], "some inputs are single texts and some are pairs"),
        ("great film", "the inputs are 'great film'; give a list of inputs, even for one"),
        ({"text": "a"}, "give a list of inputs"),
    ],
)
def test_inputs_of_other_shapes_are_refused(inputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SINGLE.rows(inputs)


def test_inputs_are_encoded_as_in_training(tokenizer: Any) -> None:
    served = SINGLE.encode(SINGLE.rows(["the film was kind"]), tokenizer, 16)
    trained = SINGLE.encode(Dataset.from_dict({"text": ["the film was kind"], "label": [0]}), tokenizer, 16)
    assert served[0]["input_ids"] == trained[0]["input_ids"]


def test_defaults_follow_the_problem() -> None:
    assert (SINGLE.default_loss, SINGLE.default_metrics[0]) == ("cross_entropy", "accuracy")
    assert (MULTI.default_loss, MULTI.default_metrics[0]) == ("binary_cross_entropy", "f1_micro")
    assert (REGRESSION.default_loss, REGRESSION.default_metrics[0]) == ("mean_squared_error", "pearson")


def test_every_task_describes_itself() -> None:
    for name in tasks.loaded_names():
        cls = tasks.get(name)
        assert cls.text_columns
        assert all(field.description for field in cls.model_fields.values())


def test_resolving_changes_a_copy() -> None:
    splits = DatasetDict(train=Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]}))
    task = SequenceClassification()
    assert task.resolved(splits).label_names == ("x", "y")
    assert task.labels is None
