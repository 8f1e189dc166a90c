from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from peftkit.data import ORIGIN
from peftkit.training.data_check import Finding, LabelRule, RowRules, check_data, is_blank

CLASSES = ("neg", "pos", "mixed")


def problem(value: Any) -> str | None:
    return None if value in CLASSES else f"{value!r} is not among the labels {', '.join(CLASSES)}"


RULE = LabelRule("label", problem=problem, class_of=lambda value: str(value))


def rows(texts: Sequence[Any], labels: Sequence[Any] | None = None, *, file: str | None = None) -> Dataset:
    columns: dict[str, Sequence[Any]] = {"text": texts}
    if labels is not None:
        columns["label"] = labels
    if file is not None:
        columns[ORIGIN] = [f"{file}:{row + 2}" for row in range(len(texts))]
    return Dataset.from_dict(columns)


def balanced(count: int, *, file: str | None = None) -> Dataset:
    return rows([f"text {row}" for row in range(count)], [CLASSES[row % 2] for row in range(count)], file=file)


def check(label: LabelRule | None = RULE, lengths: Any = None, max_length: int = 8, **splits: Dataset) -> list[Finding]:
    rules = RowRules(("text",), label)
    return check_data(DatasetDict(splits), rules, token_lengths=lengths, max_length=max_length)


def messages(findings: Sequence[Finding], severity: str) -> list[str]:
    return [finding.message for finding in findings if finding.severity == severity]


def test_sound_rows_have_no_findings() -> None:
    other = rows([f"other {row}" for row in range(4)], ["neg", "pos"] * 2)
    assert check(train=balanced(10), test=other, lengths=lambda rows: np.full(len(rows), 8)) == []


def test_empty_and_missing_text_is_an_error_with_rows_and_origins() -> None:
    texts = ["fine", "", None, "also fine", " \t\n"]
    findings = check(train=rows(texts, ["neg", "pos"] * 2 + ["neg"], file="a.csv"))
    assert messages(findings, "error") == [
        "split 'train' has 3 rows with no visible text in column 'text': rows 1 (a.csv:3), 2 (a.csv:4), 4 (a.csv:6); "
        "fill or remove them"
    ]


def test_rows_that_differ_in_their_context_are_not_the_same() -> None:
    columns = {"text": ["Add.", "Add.", "Add."], "input": ["1 2", "3 4", "1 2"]}
    splits = DatasetDict(train=Dataset.from_dict(columns), test=Dataset.from_dict({"text": ["Add."]}))
    rules = RowRules(("text",), context_columns=("input", "system"))
    (finding,) = check_data(splits, rules, token_lengths=None, max_length=8)
    assert "split 'train' repeats 1 row of 3 (33.3 %) exactly: row 2 = row 0" in finding.message


def test_a_prompt_may_have_several_completions() -> None:
    labels = ["neg", "pos", "neg"]
    assert "labels 1 row otherwise" in check(train=rows(["a", "a", "b"], labels))[0].message
    several = LabelRule("label", problem=problem, one_per_input=False)
    assert check(several, train=rows(["a", "a", "b"], labels)) == []
    (finding,) = check(several, train=rows(["a", "a", "a"], labels))
    assert "repeats 1 row of 3 (33.3 %) exactly: row 2 = row 0" in finding.message


def test_at_most_five_rows_are_listed() -> None:
    findings = check(train=rows(["x", "y"] + [""] * 17, ["neg", "pos"] + ["neg"] * 17))
    assert "rows 2, 3, 4, 5, 6 and 12 more" in messages(findings, "error")[0]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        " ",
        "\u200b",
        "\u200b\u2060\ufeff",
        "\u202e\u202c",
        "\x00\x07\x1b",
        "\u00a0\u3000",
        float("nan"),
        [],
        ["", " "],
    ],
)
def test_what_shows_nothing_is_blank(value: Any) -> None:
    assert is_blank(value)


@pytest.mark.parametrize(
    "value",
    ["a", ".", "👩‍👩‍👧", "\u202eabc", "a\x00", "ــ", 0, 7, 1.5, False, ["", "a"], "Z͑ͫ̓ͪ̂ͫ̽", "0"],
)
def test_what_shows_something_is_not_blank(value: Any) -> None:
    assert not is_blank(value)


def test_all_rows_empty() -> None:
    findings = check(train=rows([None, ""], ["neg", "pos"]), lengths=lambda rows: pytest.fail("tokenized empty text"))
    assert [finding.severity for finding in findings] == ["error"]
    assert "2 rows with no visible text" in findings[0].message


def test_numbers_are_text() -> None:
    assert check(train=rows([1, 2, 3, 0], ["neg", "pos"] * 2)) == []


def test_illegal_and_missing_labels_are_one_error_with_reasons() -> None:
    data = rows(["a", "b", "c", "d"], ["pos", "good", None, "neg"], file="a.csv")
    assert messages(check(train=data), "error") == [
        "split 'train' has 2 rows without a legal label in column 'label': rows 1 (a.csv:3): 'good' is not among the "
        "labels neg, pos, mixed; 2 (a.csv:4): no label; correct or remove them, or leave the split out"
    ]


def test_an_unlabelled_split_is_an_error_with_the_reason_of_the_task() -> None:
    rule = LabelRule("label", problem=lambda value: "-1 marks rows without a label" if value == -1 else None)
    found = messages(check(rule, train=rows(["a", "b"], [0, 1]), test=rows(["c", "d"], [-1, -1])), "error")
    assert len(found) == 1
    assert "split 'test' has 2 rows without a legal label in column 'label': rows 0: -1 marks rows without" in found[0]


def test_an_empty_list_of_labels_is_legal_where_the_task_says_so() -> None:
    rule = LabelRule("label", problem=lambda value: None)
    assert check(rule, train=rows(["a", "b"], [[], ["x"]])) == []


def test_missing_columns_and_empty_splits_are_errors() -> None:
    splits = {
        "train": rows(["a"], file="a.csv"),
        "test": Dataset.from_dict({"body": ["x"], "label": ["pos"]}),
        "validation": rows([], []),
    }
    found = messages(check(**splits), "error")
    assert found == [
        "split 'train' has no column 'label' (it has: text); map it in the recipe with  data.columns: {label: ...}",
        "split 'test' has no column 'text' (it has: body, label); map it in the recipe with  data.columns: {text: ...}",
        "split 'validation' has no rows; give it some, or leave the split out",
    ]


def test_no_label_rule_asks_for_no_labels() -> None:
    assert check(None, train=rows(["a", "b"])) == []


def test_overlong_rows_with_the_tokens_that_are_dropped() -> None:
    lengths = {"train": np.array([8, 12, 9, 3]), "test": np.array([8, 1])}
    data = {
        "train": rows(["a", "b", "c", "d"], ["neg", "pos"] * 2, file="a.csv"),
        "test": rows(["e", "f"], ["neg", "pos"]),
    }
    # Dropped: (12 - 8) + (9 - 8) = 5 of 8 + 12 + 9 + 3 = 32, 15.625 %.
    assert messages(check(lengths=lambda rows: lengths["train" if len(rows) == 4 else "test"], **data), "warning") == [
        "split 'train' has 2 rows of 4 (50.0 %) over 8 tokens: truncation drops 5 of 32 tokens (15.6 %); the longest "
        "is row 1 (a.csv:3) with 12; raise  model.max_length  or shorten them"
    ]


def test_repeated_rows_and_contradictions_are_told_apart() -> None:
    texts = ["same", "other", "same", "same", "third"]
    labels = ["pos", "neg", "pos", "neg", "neg"]
    found = messages(check(train=rows(texts, labels, file="a.csv")), "warning")
    assert found == [
        "split 'train' repeats 1 row of 5 (20.0 %) exactly: row 2 (a.csv:4) = row 0 (a.csv:2); remove them, unless "
        "they should count more than once",
        "split 'train' labels 1 row otherwise than an earlier row with the same input: row 3 (a.csv:5) = row 0 "
        "(a.csv:2); decide for one label",
    ]


def test_only_exactly_equal_text_is_a_duplicate() -> None:
    texts = ["same", "Same", "same ", "sa\u200bme", "e\u0301", "\u00e9"]
    assert check(train=rows(texts, ["neg", "pos"] * 3)) == []


def test_rows_are_compared_by_all_text_columns() -> None:
    data = Dataset.from_dict({"text": ["a", "a", "a"], "text_pair": ["x", "y", "x"], "label": ["pos", "neg", "pos"]})
    rules = RowRules(("text", "text_pair"), RULE)
    found = check_data(DatasetDict(train=data), rules, token_lengths=None, max_length=8)
    assert [message.split(":")[0] for message in messages(found, "warning")] == [
        "split 'train' repeats 1 row of 3 (33.3 %) exactly",
        "the classes of split 'train' are unbalanced",
    ]


def test_lists_of_tokens_are_compared_too() -> None:
    data = Dataset.from_dict({"text": [["a", "b"], ["ab"], ["a", "b"]]})
    found = messages(check(None, train=data), "warning")
    assert len(found) == 1
    assert "row 2 = row 0" in found[0]


@pytest.mark.parametrize("order", [("train", "test"), ("test", "train")])
def test_leakage_names_the_share_of_the_evaluation_split(order: tuple[str, str]) -> None:
    data = {
        "train": rows(["a", "b", "c", "d"], ["neg", "pos"] * 2, file="train.csv"),
        "test": rows(["x", "c", "y", "c", "a"], ["neg", "pos", "neg", "pos", "neg"], file="test.csv"),
    }
    found = [text for text in messages(check(**{name: data[name] for name in order}), "warning") if "leakage" in text]
    assert found == [
        "leakage: 3 rows of 5 (60.0 %) in split 'test' also occur in split 'train': row 1 (test.csv:3) = row 2 "
        "(train.csv:4), row 3 (test.csv:5) = row 2 (train.csv:4), row 4 (test.csv:6) = row 0 (train.csv:2); remove "
        "them from 'train', or the scores on 'test' are too good"
    ]


def test_leakage_between_validation_and_test_counts_too_whatever_the_label() -> None:
    data = {"validation": rows(["a", "b"], ["neg", "pos"]), "test": rows(["b", "c"], ["neg", "pos"])}
    found = messages(check(train=balanced(4), **data), "warning")
    assert len(found) == 1
    assert "1 row of 2 (50.0 %) in split 'test' also occur in split 'validation': row 0 = row 1" in found[0]


def test_empty_texts_are_no_duplicates() -> None:
    assert (
        messages(check(train=rows(["", "", "a", "b"], ["neg", "pos"] * 2), test=rows([""], ["pos"])), "warning") == []
    )


def test_classes_unseen_in_training_are_a_warning() -> None:
    found = messages(check(train=balanced(4), test=rows(["x", "y"], ["mixed", "pos"])), "warning")
    assert found == [
        "split 'test' has classes that 'train' lacks: 'mixed' (1 row); they cannot be learnt, so add rows "
        "of them to 'train'"
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_one_class_only_is_an_error(count: int) -> None:
    found = messages(check(train=rows([f"t{row}" for row in range(count)], ["pos"] * count)), "error")
    shown = "1 row" if count == 1 else "3 rows"
    assert found == [f"split 'train' holds only the class 'pos' ({shown}); a classifier needs two or more"]


def test_rows_whose_cells_do_not_fit_each_other_are_an_error() -> None:
    rules = RowRules(("text",), RULE, row_problems=lambda rows: {2: "the answer 'x' is not in the text"})
    found = check_data(DatasetDict(train=balanced(4, file="a.csv")), rules, token_lengths=None, max_length=8)
    assert messages(found, "error") == [
        "split 'train' has 1 row unfit to learn from: row 2 (a.csv:4): the answer 'x' is not in the text; correct or "
        "remove them"
    ]


def test_one_class_is_fine_where_there_are_no_classes() -> None:
    rule = LabelRule("label", problem=lambda value: None, class_of=lambda value: None)
    assert check(rule, train=rows(["a"], [2.5])) == []


@pytest.mark.parametrize(("positive", "warned"), [(199, False), (200, True)])
def test_imbalance_is_warned_of_from_two_to_one(positive: int, warned: bool) -> None:
    labels = ["pos"] * positive + ["neg"] * 100
    found = messages(check(train=rows([f"t{row}" for row in range(len(labels))], labels)), "warning")
    assert bool(found) is warned
    if warned:
        assert "'pos' has 66.7 % of the rows, 'neg' 33.3 %; accuracy misleads here" in found[0]
        assert "macro-F1 or Matthews correlation" in found[0]


def test_errors_come_before_warnings() -> None:
    data = rows(["a", "a", "b", ""], ["pos", "pos", "neg", "neg"])
    assert [finding.severity for finding in check(train=data)] == ["error", "warning"]
