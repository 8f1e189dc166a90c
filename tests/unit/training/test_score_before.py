"""What a run says of the model before it was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from peftkit.recipe import Recipe
from peftkit.report import summary_table, write_report
from peftkit.results import RunResult
from peftkit.training import RunOptions, run

QUIET = RunOptions(show_progress=False)


@pytest.mark.training
def test_scores_before_training_are_those_of_the_untouched_base(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """LoRA starts as the base, so a run whose rate is next to nothing ends with what the other began with."""
    moved = run(make_recipe("training.score_before=true"), tmp_path / "moved", options=QUIET)
    still = run(make_recipe("training.learning_rate=1e-12"), tmp_path / "still", options=QUIET)
    record, untouched = moved.splits["validation"], still.splits["validation"]
    assert record.before == pytest.approx(untouched.metrics)
    assert record.before_intervals == untouched.intervals
    assert record.metrics != record.before
    assert not untouched.before
    # scoring counts neither as training nor as a pause of it
    assert 0 < moved.cost.examples_per_second < 10 * still.cost.examples_per_second
    # scoring first does not change what is trained
    assert run(make_recipe(), tmp_path / "plain", options=QUIET).metrics == moved.metrics

    page = write_report(RunResult.read(tmp_path / "moved"), tmp_path / "moved").read_text()
    assert f"before training {record.before['accuracy']:.4f}" in page
    assert "before training" not in (tmp_path / "still" / "report.html").read_text()
    assert [column.header for column in summary_table(moved).columns][-1] == "before training"
    assert [column.header for column in summary_table(still).columns][-1] != "before training"
