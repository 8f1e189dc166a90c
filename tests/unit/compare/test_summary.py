"""What a suite comes to: costs over seeds, what differs between runs, the score that variants are compared by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from peftkit.compare.outcome import headline
from peftkit.compare.suite import Suite
from peftkit.compare.summary import Comparison, Score, Summary, summarize
from peftkit.errors import RunError
from peftkit.results import RunResult

MakeRun = Callable[..., RunResult]
MakeComparison = Callable[..., Comparison]
ACCURACY = Score("test", "accuracy", True)


def of(results: dict[int, RunResult]) -> Summary:
    (summary,) = summarize({"lora": results}, ACCURACY)
    return summary


def test_costs_are_medians_of_times_and_the_largest_of_sizes(make_run: MakeRun) -> None:
    summary = of(
        {
            0: make_run(rate=10.0, memory=300, saved=7, seconds={"validation": 0.1, "test": 0.2}),
            1: make_run(rate=4.0, memory=500, saved=9, seconds={"validation": 0.4, "test": 0.4}),
            2: make_run(rate=0.0, memory=400, saved=8, seconds={}),  # resumed at its last step
        }
    )
    assert summary.train_seconds_per_example == pytest.approx((0.1 + 0.25) / 2)
    # 100 validation and 300 test rows
    assert summary.inference_seconds_per_example == pytest.approx(((0.1 * 100 + 0.2 * 300) / 400 + 0.4) / 2)
    assert (summary.peak_memory_bytes, summary.saved_bytes) == (500, 9)
    assert summary.adapter_parameters == 38_000
    assert (summary.steps, summary.epochs) == ((75,), 2.0)


def test_times_that_nobody_measured_are_missing(make_run: MakeRun) -> None:
    summary = of({0: make_run(rate=0.0, seconds={})})
    assert summary.train_seconds_per_example is None
    assert summary.inference_seconds_per_example is None


def test_method_names_the_quantization_too(make_run: MakeRun) -> None:
    assert of({0: make_run(quantization="nf4")}).method == "lora on nf4"
    assert of({0: make_run(method="full")}).method == "full"


def test_variants_without_a_finished_run_have_no_summary(make_run: MakeRun) -> None:
    found = summarize({"b": {0: make_run(0.5)}, "none": {}, "a": {0: make_run(0.9)}}, ACCURACY)
    assert [summary.label for summary in found] == ["a", "b"]
    lower = summarize({"b": {0: make_run(0.5)}, "a": {0: make_run(0.9)}}, Score("test", "accuracy", False))
    assert [summary.label for summary in lower] == ["b", "a"]


def test_a_score_that_no_run_has_is_refused_with_those_there_are(make_run: MakeRun) -> None:
    with pytest.raises(
        RunError, match=r"run 'lora-seed0' has no 'f1' on 'test' \(it has: accuracy on validation, accuracy on test\)"
    ):
        summarize({"lora": {0: make_run()}}, Score("test", "f1", True))


def test_what_differs_between_runs_is_found_with_its_labels(make_comparison: MakeComparison) -> None:
    comparison = make_comparison(
        {"a": [0.8, 0.8], "b": [0.8, 0.8], "c": [0.8, 0.8]},
        facts={"b": {"fingerprint": "ab" * 32}, "c": {"environment": {"device": "cpu", "torch": "2.12.0"}}},
    )
    assert comparison.differences == {
        "data of train (SHA-256)": {"1f1f1f1f1f1f": ("a", "c"), "abababababab": ("b",)},
        "torch": {"2.13.0": ("a", "b"), "2.12.0": ("c",)},
    }
    assert comparison.shared["data of test (SHA-256)"] == "3d" * 6
    assert comparison.shared["base model"] == "org/tiny 777777777777"
    assert comparison.shared["peftkit"] == "0.1.0"


def test_base_models_are_told_apart_and_local_ones_named_without_their_folder(make_comparison: MakeComparison) -> None:
    comparison = make_comparison({"a": [0.8], "b": [0.8]}, facts={"b": {"locator": "/data/me/tiny"}})
    assert comparison.differences == {
        "base model": {"org/tiny 777777777777": ("a",), "tiny 777777777777": ("b",)},
    }


def suite(**keys: object) -> Suite:
    return Suite.model_validate({"recipe": "r.yaml", "variants": {"a": {}}, **keys})


def test_the_score_is_that_which_chose_the_weights_on_test(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert headline(suite(), {"a": {0: make_run()}}) == ACCURACY
    only = make_run(splits={"validation": {"accuracy": 0.5}})
    assert headline(suite(), {"a": {0: make_run()}, "b": {0: only}}) == Score("validation", "accuracy", True)
    assert headline(suite(split="validation"), {"a": {0: make_run()}}).split == "validation"
    assert headline(suite(metric="f1"), {"a": {0: make_run()}}).metric == "f1"


def test_a_score_that_is_better_when_lower_is_known_as_such(make_run: MakeRun) -> None:
    result = make_run()
    recipe = {**result.recipe, "metrics": [{"name": "mse"}], "training": {"best_metric": "mse"}}
    result = result.model_copy(update={"best_metric": "validation_mse", "recipe": recipe})
    assert headline(suite(), {"a": {0: result}}) == Score("test", "mse", False)


def test_variants_chosen_by_different_scores_need_one_named(make_run: MakeRun) -> None:
    other = make_run().model_copy(update={"best_metric": "validation_f1"})
    results = {"a": {0: make_run()}, "b": {0: other}}
    with pytest.raises(RunError, match=r"different scores \(accuracy of 'a', f1 of 'b'\); name one with  metric"):
        headline(suite(), results)
    assert headline(suite(metric="accuracy"), results) == ACCURACY


def test_runs_that_share_no_split_cannot_be_compared(make_run: MakeRun, tmp_path: Path) -> None:
    runs = {"a": {0: make_run(splits={"test": {"accuracy": 1}})}, "b": {0: make_run(splits={"dev": {"accuracy": 1}})}}
    with pytest.raises(RunError, match="no split was scored by all runs"):
        headline(suite(), runs)
