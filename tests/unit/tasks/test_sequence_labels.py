"""How sequence classification reads labels: strings, numbers, flags, ClassLabel, mappings, lists and text lists."""

from __future__ import annotations

import math
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from pydantic import ValidationError

from peftkit.errors import DataError
from peftkit.tasks import tasks
from peftkit.tasks.sequence_classification import SequenceClassification

NAN = math.nan
MULTI = {"problem_type": "multi_label"}


def resolve(cells: list[Any], *, feature: Any = None, **options: Any) -> SequenceClassification:
    features = Features(text=Value("string"), label=feature) if feature else None
    rows = Dataset.from_dict({"text": ["a"] * len(cells), "label": cells}, features=features)
    return SequenceClassification(**options).resolved(DatasetDict(train=rows))


def classes_of(task: SequenceClassification, values: list[Any]) -> list[Any]:
    """Class names of single labels, None where a value is no label."""
    return [task.class_of(value) for value in values]


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        (["dog", "cat", "dog"], ("cat", "dog"), ["dog", "cat", "dog"]),
        ([0, 1, 1], ("0", "1"), ["0", "1", "1"]),
        ([10, 9, 2], ("2", "9", "10"), ["10", "9", "2"]),  # by value, not by spelling
        ([1, 2], ("1", "2"), ["1", "2"]),
        ([-1, 1], ("-1", "1"), ["-1", "1"]),
        ([1.0, 2.0], ("1", "2"), ["1", "2"]),
        (["1", "0"], ("0", "1"), ["1", "0"]),
        (["10", "9"], ("9", "10"), ["10", "9"]),
        ([True, False], ("False", "True"), ["True", "False"]),
        (["ja", None, "nein"], ("ja", "nein"), ["ja", None, "nein"]),
        ([1.0, NAN, 0.0], ("0", "1"), ["1", None, "0"]),
        (["b", "", "  ", "a"], ("a", "b"), ["b", None, None, "a"]),
        (["über", "日本"], ("über", "日本"), ["über", "日本"]),
    ],
)
def test_labels_are_taken_from_the_data(labels: list[Any], names: tuple[str, ...], classes: list[Any]) -> None:
    task = resolve(labels)
    assert task.label_names == names
    assert classes_of(task, labels) == classes


@pytest.mark.parametrize("names", [["neg", "pos"], ["1", "2"], ["1", "0"], ["2", "x"]])
def test_class_label_columns_hold_indices(names: list[str]) -> None:
    # With names written as numbers a value could be taken for a name: index 1 of (1, 2) means class "2".
    task = resolve([0, 1, 1], feature=ClassLabel(names=names))
    assert task.label_names == tuple(names)
    assert classes_of(task, [0, 1]) == names
    assert task.label_problem(2) is not None
    assert task.label_problem(-1) is not None


def test_unlabelled_class_label_rows_are_a_problem() -> None:
    task = resolve([0, 1, -1], feature=ClassLabel(names=["neg", "pos"]))
    assert task.label_problem(-1) == "the label -1 is not among task.labels (neg, pos)"


def test_train_decides_where_there_is_one() -> None:
    splits = DatasetDict(
        test=Dataset.from_dict({"text": ["a"], "label": ["z"]}),
        train=Dataset.from_dict({"text": ["a", "b"], "label": ["y", "x"]}),
    )
    task = SequenceClassification().resolved(splits)
    assert task.label_names == ("x", "y")
    assert task.label_problem("z") == "the label 'z' is not among task.labels (x, y)"


def test_given_labels_are_kept_in_their_order() -> None:
    task = resolve(["a", "b"], labels=["z", "b", "a"])
    assert task.label_names == ("z", "b", "a")
    assert task._target("a", 0) == 2


@pytest.mark.parametrize("values", [[1, 2], ["1", "2"], [1.0, 2.0]])
def test_mapping_counts_from_one(values: list[Any]) -> None:
    task = resolve(values, labels={1: "World", 2: "Sports"})
    assert task.label_names == ("World", "Sports")
    assert classes_of(task, values) == ["World", "Sports"]
    assert [task._target(value, 0) for value in values] == [0, 1]
    assert task.label_problem(0) == "the label 0 is not among task.labels (1, 2)"
    assert task.label_problem(3) == "the label 3 is not among task.labels (1, 2)"


def test_mapping_also_knows_its_names() -> None:
    assert classes_of(resolve([1], labels={1: "World", 2: "Sports"}), ["Sports", "sports"]) == ["Sports", None]


def test_mapping_between_numbers_is_applied_once() -> None:
    task = resolve([1], labels={1: "2", 2: "1"})
    assert classes_of(task, [1, 2, "1", "2"]) == ["2", "1", "2", "1"]
    # 4 is a name, but no value of the data
    assert resolve([1], labels={1: "3", 2: "4"}).label_problem(4) is not None


def test_mapping_merges_classes_of_one_name() -> None:
    task = resolve([1, 5], labels={1: "bad", 2: "bad", 4: "good", 5: "good"})
    assert task.label_names == ("bad", "good")
    assert [task._target(value, 0) for value in (1, 2, 4, 5)] == [0, 0, 1, 1]
    assert task.head().config["label2id"] == {"bad": 0, "good": 1}


def test_flags_are_mapped_by_their_value() -> None:
    assert classes_of(resolve([True], labels={True: "yes", False: "no"}), [True, False]) == ["yes", "no"]
    assert resolve([True], labels=["no", "yes"]).label_problem(True) is not None


@pytest.mark.parametrize(
    ("labels", "value", "name"),
    [
        (["neg", "pos"], 1, "pos"),  # an index
        (["neg", "pos"], 1.0, "pos"),
        (["neg", "pos"], "1", None),  # text is a name, never an index
        (["neg", "pos"], 2, None),
        (["neg", "pos"], -1, None),
        (["neg", "pos"], 0.5, None),
        (["neg", "pos"], "Pos", None),
        (["1", "2"], 1, "1"),  # names that are numbers are always names
        (["1", "2"], 0, None),
        (["0", "many"], 1, None),
        (["neg", "pos"], ["pos"], None),
        (["neg", "pos"], {"a": 1}, None),
    ],
)
def test_single_values_against_given_labels(labels: list[str], value: Any, name: str | None) -> None:
    task = SequenceClassification(labels=labels)
    assert task.class_of(value) == name
    assert (task.label_problem(value) is None) == (name is not None)
    if name is None:
        assert task.label_problem(value) == f"the label {value!r} is not among task.labels ({', '.join(labels)})"


@pytest.mark.parametrize("value", [None, NAN, "", "  "])
def test_missing_labels_are_called_so(value: Any) -> None:
    assert SequenceClassification(labels=["a", "b"]).label_problem(value) == "the label is missing"


@pytest.mark.parametrize(
    ("labels", "names", "targets"),
    [
        ([["a", "b"], [], ["b"]], ("a", "b"), [[1, 1], [0, 0], [0, 1]]),
        ([[2, 0], [1], []], ("0", "1", "2"), [[1, 0, 1], [0, 1, 0], [0, 0, 0]]),
        ([[2.0], [10.0]], ("2", "10"), [[1, 0], [0, 1]]),
        (["b, a", "", " b ,"], ("a", "b"), [[1, 1], [0, 0], [0, 1]]),
        (["7,3", "3", "7"], ("3", "7"), [[1, 1], [1, 0], [0, 1]]),
        ([4, 5, 4], ("4", "5"), [[1, 0], [0, 1], [1, 0]]),
    ],
)
def test_multi_label_cells(labels: list[Any], names: tuple[str, ...], targets: list[list[int]]) -> None:
    task = resolve(labels, **MULTI)
    assert task.label_names == names
    assert [task._target(value, 0) for value in labels] == targets
    assert [task.label_problem(value) for value in labels] == [None] * len(labels)
    assert task.class_of(labels[0]) is None


def test_multi_label_separator_and_lists_of_class_labels() -> None:
    assert resolve(["a b|c", "c"], label_separator="|", **MULTI).label_names == ("a b", "c")
    task = resolve([[0], [1, 0]], feature=List(ClassLabel(names=["2", "1"])), **MULTI)
    assert task.label_names == ("2", "1")
    assert [task._target(value, 0) for value in ([0], [1, 0])] == [[1, 0], [1, 1]]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "the label is missing"),
        (["a", "x"], r"the label 'x' is not among task.labels \(a, b, c\)"),
        ("a;b", r"the label 'a;b' is not among task.labels"),
        (["a", None], r"the label None is not among"),
        ([0, 1, 0], r"the label \[0, 1, 0\] names a class twice; list the labels that apply, not zeros and ones"),
        ("a, a", r"the label 'a, a' names a class twice"),
    ],
)
def test_multi_label_problems(value: Any, problem: str) -> None:
    found = SequenceClassification(labels=["a", "b", "c"], **MULTI).label_problem(value)
    assert found is not None
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(found)


@pytest.mark.parametrize(("value", "target"), [(3, 3.0), (-0.5, -0.5), ("2.5", 2.5), (True, 1.0), (0, 0.0)])
def test_regression_takes_numbers(value: Any, target: float) -> None:
    task = resolve([value], problem_type="regression")
    assert task.labels is None
    assert task.label_problem(value) is None
    assert task._target(value, 0) == target


@pytest.mark.parametrize("value", ["high", math.inf, "inf", "1,5", [1.0]])
def test_regression_refuses_what_is_no_finite_number(value: Any) -> None:
    task = SequenceClassification(problem_type="regression")
    assert task.label_problem(value) == f"the label {value!r} is no finite number"
    assert task.label_problem(NAN) == task.label_problem(None) == "the label is missing"


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([None, None], {}, r"label' of split 'train' holds too few different labels to learn from \(none\)"),
        (["a", "a"], {}, r"too few different labels to learn from \('a'\); check data.columns, or name all classes"),
        ([[], []], MULTI, r"too few different labels to learn from \(none\)"),
        ([["a"], ["b"]], {}, r"holds lists \(\['a'\]\).*task.problem_type: multi_label"),
        ([[], ["b"]], {}, r"holds lists \(\['b'\]\)"),
    ],
)
def test_unlearnable_label_columns(labels: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        resolve(labels, **options)


def test_absent_columns_are_named_with_what_is_there() -> None:
    splits = DatasetDict(
        train=Dataset.from_dict({"text": ["a"], "label": [1]}),
        test=Dataset.from_dict({"text": ["a"], "stars": [1], "__origin__": ["a.csv:1"]}),
    )
    with pytest.raises(
        DataError, match=r"split 'test' has no column 'label' \(it has: text, stars\); map it.*\{label: "
    ):
        SequenceClassification().resolved(splits)
    with pytest.raises(DataError, match="split 'test' has no column 'text'"):
        SequenceClassification().resolved(DatasetDict(test=splits["test"].rename_column("text", "body")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": []}, r"labels names 0 class\(es\), single_label needs at least 2"),
        ({"labels": {}}, "labels names 0 class"),
        ({"labels": ["only"]}, "labels names 1 class"),
        ({"labels": {1: "same", 2: "same"}}, "labels names 1 class"),
        ({"labels": [], **MULTI}, "multi_label needs at least 1"),
        ({"labels": ["a", "b", "a"]}, "labels has 'a' twice; every class needs its own name"),
        ({"labels": {1: "a", "1": "b"}}, "two keys are the same label: 1, '1'"),
        ({"labels": ["a", "b"], "problem_type": "regression"}, "problem_type is regression; remove labels"),
        ({"labels": [1, 2]}, "valid string"),
        ({"problem_type": "ranking"}, "problem_type"),
        ({"label_separator": ""}, "label_separator"),
        ({"label": ["a"]}, "label\n.*Extra"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SequenceClassification(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"labels": {1: "World", 2: "Sports"}},
        {"labels": {True: "yes", False: "no"}},
        {"labels": ["b", "a"]},
        {"labels": ["only"], **MULTI},
        {"problem_type": "regression"},
        {},
    ],
)
def test_options_read_back_equal_from_their_recipe_form(options: dict[str, Any]) -> None:
    task = SequenceClassification(**options)
    again = tasks.build(task.spec())
    assert again == task
    assert again.spec() == task.spec()


def test_resolved_task_reads_back_equal() -> None:
    for task in (resolve([True, False]), resolve([0, 1], feature=ClassLabel(names=["1", "0"])), resolve([1.0, 2.0])):
        assert tasks.build(task.spec()) == task
