"""Charts as SVG text: drawn by matplotlib, coloured by the style sheet of the page they stand in."""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.report.scores import chosen_by
from peftkit.results import ClassificationDetail, RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, FIRST, SECOND, PAPER = "#2a2f36", "#c9ced6", "#1f5fbf", "#b8541a", "#fefefe"
_ON_PAGE = {
    INK: "var(--muted)",
    FAINT: "var(--line)",
    FIRST: "var(--accent)",
    SECOND: "var(--error)",
    PAPER: "var(--paper)",
}
"""What the page puts in place of each colour, so that a chart follows its light and dark themes."""
_STYLE = {
    "svg.fonttype": "none",  # text stays text: readable by screen readers, set in the font of the page
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Curve:
    """Values of one logged quantity by optimizer step; gaps where a value is not finite."""

    key: str
    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def finite(self) -> int:
        """How many values can be drawn."""
        return sum(map(math.isfinite, self.values))


def curves(result: RunResult) -> dict[str, Curve]:
    """Every logged quantity, in the order of first appearance."""
    found: dict[str, list[tuple[int, float]]] = {}
    for point in result.history:
        for key, value in point.values.items():
            found.setdefault(key, []).append((point.step, value))
    return {key: Curve(key, *zip(*points, strict=True)) for key, points in found.items()}


def curve_chart(drawn: Sequence[Curve], *, best_step: int | None, title: str) -> str | None:
    """One panel of the learning curves for the page; None if no value is finite."""
    if not any(curve.finite for curve in drawn):
        return None
    return svg(lambda figure: _draw_curves(figure.add_subplot(), drawn, best_step), (4.3, 2.5), title=title)


def reliability_chart(detail: ClassificationDetail, *, title: str) -> str:
    """Accuracy over confidence, by bin, beside the diagonal of perfect calibration."""
    return svg(lambda figure: _draw_reliability(figure.add_subplot(), detail), (3.4, 3.2), title=title)


def learning_curve(result: RunResult) -> str | None:
    """Loss and deciding metric side by side, as a file that stands alone; None if no value is finite."""
    found = curves(result)
    losses = [found[key] for key in ("loss", "validation_loss") if key in found and found[key].finite]
    metric = found.get(result.best_metric)
    panels = [panel for panel in (losses, [metric] if metric and metric.finite else []) if panel]
    if not panels:
        return None
    split, name = chosen_by(result)
    best_step = result.best_step if result.best_metric in found else None

    def draw(figure: Figure) -> None:
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), place + 1)
            _draw_curves(axes, panel, best_step)
            axes.set_title(name if panel[0] is metric else "loss", loc="left", fontsize=11)
            axes.set_xlabel("optimizer step")
            axes.legend([split if curve is metric else _SIDES[curve.key] for curve in panel])

    return _render(draw, (4.5 * len(panels), 3.2), salt="learning curve")


_SIDES = {"loss": "train", "validation_loss": "validation"}


def _draw_curves(axes: Axes, drawn: Sequence[Curve], best_step: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    for curve in drawn:
        training = not curve.key.startswith("validation_")
        axes.plot(
            curve.steps,
            curve.values,
            color=FIRST if training or len(drawn) == 1 else SECOND,
            linewidth=1.4,
            marker="o" if not training or curve.finite <= 2 else None,
            markersize=3.5,
        )
    steps = [step for curve in drawn for step in curve.steps]
    if best_step is not None and best_step <= max(steps):
        axes.axvline(best_step, color=INK, linewidth=0.9, linestyle=(0, (3, 3)), zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(length=0)
    axes.set_xlim(0, 1.03 * max(1, *steps))


def _draw_reliability(axes: Axes, detail: ClassificationDetail) -> None:
    rows = [bin_rows for _, _, bin_rows in detail.calibration_bins]
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.9, linestyle=(0, (3, 3)))
    for confidence, accuracy, bin_rows in detail.calibration_bins:
        axes.plot([confidence, confidence], [confidence, accuracy], color=SECOND, linewidth=1.2)
        size = 5 + 9 * math.sqrt(bin_rows / max(rows))
        axes.plot(confidence, accuracy, "o", color=FIRST, markersize=size, markeredgecolor=PAPER, clip_on=False)
    axes.set(xlim=(0, 1.03), ylim=(-0.02, 1.03), xlabel="confidence", ylabel="accuracy")
    axes.tick_params(length=0)


def svg(draw: Callable[[Figure], None], inches: tuple[float, float], *, title: str) -> str:
    """A chart to stand inside the page: sized by its place, coloured by the page, named for screen readers."""
    text = _render(draw, inches, salt=title)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]+"', text)
    opening = f'<svg {box[0] if box else ""} role="img" aria-label="{html.escape(title)}">'
    text = re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1)
    for colour, variable in _ON_PAGE.items():
        text = text.replace(colour, variable)
    used = set(re.findall(r"#([\w-]+)", text))
    return re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text).strip()


def _render(draw: Callable[[Figure], None], inches: tuple[float, float], *, salt: str) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # `salt` makes the ids of clip paths and markers: repeatable, and different in every chart of a page.
    style: Mapping[str, Any] = {**_STYLE, "svg.hashsalt": f"peftkit {salt}"}
    with matplotlib.rc_context(dict(style)), warnings.catch_warnings():
        # Metric names of plugins may need letters that matplotlib's own font lacks; whoever opens the SVG has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure = Figure(figsize=inches, facecolor=PAPER, layout="constrained")
        draw(figure)
        for axes in figure.axes:
            axes.set_facecolor("none")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=False)
    return buffer.getvalue()
