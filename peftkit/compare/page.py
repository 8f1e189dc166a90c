"""The comparison as one page: picture, table, what the runs have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.compare.statistics import Summary
from peftkit.compare.table import HEADERS, Comparison, cells, notes
from peftkit.report.charts import FIRST, INK, svg
from peftkit.report.wording import count, plain_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def render_page(comparison: Comparison) -> str:
    """The page as HTML, without script and without reference to anything outside itself."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("peftkit", "compare"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    reports = PackageLoader("peftkit", "report")
    style, _, _ = reports.get_source(environment, "report.css")
    return environment.get_template("comparison.html.jinja").render(
        comparison=comparison,
        style=Markup(style),
        headers=HEADERS,
        rows=[(cells(summary, comparison), summary.label in comparison.top) for summary in comparison.summaries],
        runs=[(summary.label, list(summary.scores.items())) for summary in comparison.summaries],
        notes=notes(comparison),
        metric=plain_name(comparison.metric),
        picture=Markup(picture(comparison)) if comparison.summaries else None,
    )


def picture(comparison: Comparison) -> str:
    """Score over trainable parameters, logarithmic, with intervals, as SVG."""
    title = f"{plain_name(comparison.metric)} on {comparison.split} over trainable parameters"
    return svg(lambda figure: _draw(figure.add_subplot(), comparison), (8.6, 4.6), title=title)


def _draw(axes: Axes, comparison: Comparison) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    for summary in comparison.summaries:
        x, y = summary.trainable_parameters, summary.mean
        if summary.low is not None and summary.high is not None:
            axes.plot([x, x], [summary.low, summary.high], color=INK, linewidth=1.0)
        axes.plot(x, y, "o", color=FIRST, markersize=6)
    axes.set_xscale("log")
    axes.set(xlabel="trainable parameters, head included", ylabel=f"{comparison.metric}, {comparison.split}")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(round(value))))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.margins(x=0.14, y=0.08)
    axes.tick_params(length=0)
    axes.figure.canvas.draw()
    _label(axes, comparison.summaries)


def _label(axes: Axes, summaries: tuple[Summary, ...]) -> None:
    """Name every point beside it; names that would cover each other move up until they are free."""
    taken: list[tuple[float, float, float]] = []
    points = 72 / axes.figure.dpi
    right = points * axes.bbox.x1
    for summary in sorted(summaries, key=lambda summary: summary.mean):
        x, y = points * axes.transData.transform((summary.trainable_parameters, summary.mean))
        width = _LETTER * len(summary.label)
        left = 7.0 if x + 7 + width < right else -7 - width
        lift = 0.0
        while any(x + left < at + far and at < x + left + width and abs(y + lift - up) < 10 for at, far, up in taken):
            lift += 2
        taken.append((x + left, width, y + lift))
        place = (summary.trainable_parameters, summary.mean)
        axes.annotate(
            summary.label, place, (left, lift), textcoords="offset points", va="center", fontsize=9, color=INK
        )


_LETTER = 5.2
"""Mean width of a letter of 9 points."""
