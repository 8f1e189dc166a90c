from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from peftkit.report.charts import Curve, curve_chart, curves, learning_curve, reliability_chart
from peftkit.results import ClassificationDetail, HistoryPoint, RunResult

_LINE = re.compile(
    r'<path d="(M [^"]+?)"[^>]*style="fill: none; (?:stroke-dash[^;]+; )*stroke: var\(--(accent|error|muted)\)'
)


def _lines(svg: str, colour: str) -> list[list[tuple[float, float]]]:
    """Points of the drawn lines of one colour, a list per connected piece."""
    pieces = []
    for path, found in _LINE.findall(svg):
        for piece in path.split("M ")[1:]:
            numbers = [float(word) for word in piece.replace("L", " ").split()]
            pieces += [list(zip(numbers[::2], numbers[1::2], strict=True))] * (found == colour)
    return pieces


def _chart(*drawn: Curve, best_step: int | None = None) -> str:
    svg = curve_chart(drawn, best_step=best_step, title="a chart")
    assert svg is not None
    return svg


def test_curve_goes_through_its_values() -> None:
    svg = _chart(Curve("validation_accuracy", (20, 60, 100), (0.2, 0.8, 0.6)))
    ((first, second, third),) = _lines(svg, "accent")
    assert second[0] - first[0] == pytest.approx(third[0] - second[0], rel=1e-3)
    # SVG counts downwards: 0.6 of the height up, then 0.2 down.
    assert (second[1] - first[1]) / (third[1] - second[1]) == pytest.approx(-3, rel=1e-3)
    assert second[1] < third[1] < first[1]


def test_best_step_is_marked_where_it_is() -> None:
    svg = _chart(Curve("validation_accuracy", (20, 60, 100), (0.2, 0.8, 0.6)), best_step=60)
    ((_, best, _),) = _lines(svg, "accent")
    ((bottom, top),) = _lines(svg, "muted")
    assert bottom[0] == top[0] == pytest.approx(best[0], abs=0.01)
    assert _lines(_chart(Curve("loss", (20, 60), (0.2, 0.8)), best_step=None), "muted") == []


def test_values_that_are_not_finite_leave_a_gap(make_run: Any) -> None:
    values = [0.9, 0.8, math.nan, 0.6, math.inf, 0.5, 0.4]
    history = tuple(HistoryPoint(step=i, epoch=i, values={"loss": value}) for i, value in enumerate(values))
    curve = curves(make_run(history=history))["loss"]
    assert curve.finite == 5
    pieces = _lines(_chart(curve), "accent")
    assert [len(piece) for piece in pieces if len(piece) > 1] == [2, 2]


def test_single_value_is_a_dot() -> None:
    svg = _chart(Curve("loss", (10,), (0.7,)))
    assert svg.count("<use ") == 1


def test_nothing_finite_nothing_drawn(make_run: Any) -> None:
    assert curve_chart([Curve("loss", (1, 2), (math.nan, math.nan))], best_step=1, title="loss") is None
    assert learning_curve(make_run(history=())) is None
    assert learning_curve(make_run(history=(HistoryPoint(step=1, epoch=1, values={"loss": math.nan}),))) is None


def test_training_and_validation_loss_have_their_own_colours() -> None:
    svg = _chart(Curve("loss", (1, 2, 3), (0.9, 0.8, 0.7)), Curve("validation_loss", (1, 3), (0.5, 0.6)))
    assert [len(piece) for piece in _lines(svg, "accent")] == [3]
    assert [len(piece) for piece in _lines(svg, "error")] == [2]


def test_reliability_diagram_shows_the_bins() -> None:
    detail = ClassificationDetail(
        labels=("a", "b"),
        confusion=((1, 0), (0, 1)),
        precision=(1, 1),
        recall=(1, 1),
        f1=(1, 1),
        support=(1, 1),
        calibration_error=0.1,
        calibration_bins=((0.5, 0.25, 10), (0.9, 1.0, 30)),
    )
    svg = reliability_chart(detail, title="Reliability")
    ((start, end),) = _lines(svg, "muted")  # the diagonal from (0, 0) to (1, 1)
    gaps = _lines(svg, "error")
    found = [
        [((x - start[0]) / (end[0] - start[0]), (y - start[1]) / (end[1] - start[1])) for x, y in gap] for gap in gaps
    ]
    expected = [[(0.5, 0.5), (0.5, 0.25)], [(0.9, 0.9), (0.9, 1.0)]]
    assert [[pytest.approx(point, abs=1e-3) for point in gap] for gap in expected] == found


def test_charts_of_the_page_take_its_colours_and_are_named() -> None:
    svg = curve_chart([Curve("loss", (1, 2), (1.0, 0.5))], best_step=2, title='loss "<b>" & more')
    assert svg is not None
    assert svg.startswith("<svg viewBox=")
    assert 'role="img" aria-label="loss &quot;&lt;b&gt;&quot; &amp; more"' in svg
    assert re.findall(r"#[0-9a-f]{6}", svg) == []
    assert "<style" not in svg
    assert "<metadata" not in svg


def test_file_stands_alone_and_repeats_exactly(run: RunResult) -> None:
    svg = learning_curve(run)
    assert svg is not None
    assert svg == learning_curve(run)
    root = ET.fromstring(svg)
    texts = {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"loss", "accuracy", "train", "validation", "optimizer step"} <= texts
    assert "var(--" not in svg
    assert "<dc:date>" not in svg


def test_metric_name_in_any_script_draws_without_a_warning(make_run: Any) -> None:
    history = (HistoryPoint(step=1, epoch=1, values={"loss": 1.0, "validation_دقة": 0.5}),)
    svg = learning_curve(make_run(history=history, best_metric="validation_دقة"))
    assert svg is not None
    assert "دقة" in svg
