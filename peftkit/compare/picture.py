"""The picture of a comparison: score over trainable parameters, with intervals and names that do not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from peftkit.compare.summary import Comparison
from peftkit.report.charts import FIRST, INK, PAPER, svg
from peftkit.report.wording import count, plain_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (8.4, 4.8)
_LETTER, _LINE = 5.6, 11.0
"""Width of a letter and height of a line of the 9-point font, in points; browsers' fonts are no wider."""
_MARK = 4.0
"""Half the width of a mark, in points."""
_SIDE_BY_SIDE = 2.6 * _MARK
"""Between marks of variants of equal size."""


@dataclass(frozen=True)
class Point:
    """One variant.

    Args:
        low, high: ends of the interval; the score itself where there is none.
        top: whether it cannot be told apart from the best mean.
    """

    label: str
    parameters: int
    score: float
    low: float
    high: float
    top: bool


@dataclass(frozen=True)
class Box:
    """A rectangle on the picture, in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two have an area in common."""
        beside = self.right <= other.left or other.right <= self.left
        return not (beside or self.top <= other.bottom or other.top <= self.bottom)


@dataclass(frozen=True)
class Mark:
    """A point on the picture, in points; `shift` is how far it was moved aside for others of its size."""

    point: Point
    x: float
    y: float
    low: float
    high: float
    shift: float

    def boxes(self) -> tuple[Box, Box]:
        """What the mark and its interval cover."""
        mark = Box(self.x - _MARK, self.y - _MARK, self.x + _MARK, self.y + _MARK)
        return mark, Box(self.x - 1, self.low, self.x + 1, self.high)


def picture(comparison: Comparison) -> str | None:
    """Score over trainable parameters as SVG for the page; None if no score can be drawn."""
    points = points_of(comparison)
    if not points:
        return None
    metric = plain_name(comparison.score.metric)
    listed = "; ".join(f"{point.label} {point.score:.4f} at {count(point.parameters)}" for point in points)
    title = f"{metric} on {comparison.score.split} over trainable parameters: {listed}"
    axis = f"{metric} on {comparison.score.split}"
    return svg(lambda figure: _draw(figure.add_subplot(), points, axis), _INCHES, title=title)


def points_of(comparison: Comparison) -> list[Point]:
    """Every variant that can be drawn: one without trainable parameters has no place on a logarithmic axis."""
    import math

    found = []
    for summary in comparison.summaries:
        mean, interval = summary.score.mean, summary.score.interval
        low, high = (interval.low, interval.high) if interval else (mean, mean)
        parameters = summary.first.model.trainable_parameters
        if parameters > 0 and math.isfinite(mean + low + high):
            found.append(Point(summary.label, parameters, mean, low, high, summary.label in comparison.top))
    return found


def _draw(axes: Axes, points: Sequence[Point], axis: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
    from matplotlib.transforms import ScaledTranslation

    _set_limits(axes, points)
    axes.set(xlabel="trainable parameters, new head included", ylabel=axis)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(round(value))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.tick_params(length=0)
    axes.figure.draw_without_rendering()  # places the axes
    marks = _marks(axes, points)
    for mark in marks:
        aside = axes.transData + ScaledTranslation(mark.shift / 72, 0, axes.figure.dpi_scale_trans)
        point, colour = mark.point, FIRST if mark.point.top else INK
        if point.high > point.low:
            axes.plot([point.parameters] * 2, [point.low, point.high], color=colour, linewidth=1.1, transform=aside)
        fill = FIRST if point.top else PAPER
        axes.plot(
            point.parameters, point.score, "o", color=fill, markeredgecolor=colour, markersize=6.5, transform=aside
        )
    _name(axes, marks)


def _set_limits(axes: Axes, points: Sequence[Point]) -> None:
    smallest, largest = min(point.parameters for point in points), max(point.parameters for point in points)
    room = max(1.6, (largest / smallest) ** 0.1)
    axes.set_xscale("log")
    axes.set_xlim(smallest / room, largest * room)
    low, high = min(point.low for point in points), max(point.high for point in points)
    margin = 0.1 * (high - low) or 0.01 * abs(high) or 0.01
    axes.set_ylim(low - margin, high + 1.5 * margin)


def _marks(axes: Axes, points: Sequence[Point]) -> list[Mark]:
    """Where the points are; those too close to the one before, from the left, are moved aside."""
    scale = 72 / axes.figure.dpi
    marks: list[Mark] = []
    groups: list[list[tuple[float, Point]]] = []
    for point in sorted(points, key=lambda point: (point.parameters, -point.score)):
        x = scale * float(axes.transData.transform((point.parameters, point.score))[0])
        if groups and x - groups[-1][-1][0] < 2 * _MARK:
            groups[-1].append((x, point))
        else:
            groups.append([(x, point)])
    for group in groups:
        for place, (x, point) in enumerate(group):
            centre = sum(at for at, _ in group) / len(group)
            shift = centre + _SIDE_BY_SIDE * (place - (len(group) - 1) / 2) - x if len(group) > 1 else 0.0
            heights = [
                scale * float(axes.transData.transform((point.parameters, value))[1])
                for value in (point.score, point.low, point.high)
            ]
            marks.append(Mark(point, x + shift, heights[0], heights[1], heights[2], shift))
    return marks


def _name(axes: Axes, marks: Sequence[Mark]) -> None:
    """Write every label beside its mark, joined to it by a line where it had to give way."""
    scale = 72 / axes.figure.dpi
    frame = Box(scale * axes.bbox.x0, scale * axes.bbox.y0, scale * axes.bbox.x1, scale * axes.bbox.y1)
    for mark, name in zip(marks, label_places(marks, frame), strict=True):
        axes.annotate(
            mark.point.label,
            name.anchor,
            xycoords="figure points",
            ha=name.side,
            va="center",
            fontsize=9,
            color=INK,
        )
        if not name.adjacent:
            axes.annotate(
                "",
                (mark.x, mark.y),
                name.end,
                xycoords="figure points",
                textcoords="figure points",
                arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.5, "shrinkA": 1.5, "shrinkB": _MARK},
            )


@dataclass(frozen=True)
class Name:
    """A place for a label: left or right of its mark, or centred over or under it.

    Args:
        adjacent: whether it needs no line to show which mark it belongs to.
        cost: the higher, the further from its mark.
    """

    mark: Mark
    box: Box
    side: Literal["left", "right", "center"]
    adjacent: bool
    cost: float

    @property
    def anchor(self) -> tuple[float, float]:
        """The point that the text is aligned to: its start, end or middle."""
        x = {"left": self.box.left, "right": self.box.right, "center": (self.box.left + self.box.right) / 2}
        return x[self.side], (self.box.bottom + self.box.top) / 2

    @property
    def end(self) -> tuple[float, float]:
        """Where the line from the mark ends."""
        x, y = self.anchor
        return (x, y) if self.side != "center" else (x, self.box.bottom if y > self.mark.y else self.box.top)

    def line(self) -> list[Box]:
        """The line to the mark as small boxes."""
        if self.adjacent:
            return []
        (x, y), parts = self.end, 24
        ends = [(x + (self.mark.x - x) * part / parts, y + (self.mark.y - y) * part / parts) for part in range(parts)]
        return [Box(x - 0.5, y - 0.5, x + 0.5, y + 0.5) for x, y in ends]


def label_places(marks: Sequence[Mark], frame: Box) -> list[Name]:
    """Places for the labels, in the order of the marks, that cover neither each other nor a mark nor an interval.

    Where there is room for that, the lines to the marks cross nothing of other variants either.
    """
    found: dict[str, Name] = {}
    for mark in sorted(marks, key=lambda mark: -mark.y):
        own, others = mark.boxes(), [box for other in marks if other is not mark for box in other.boxes()]
        names = [name.box for name in found.values()]
        lines = [box for name in found.values() for box in name.line()]
        options = [name for name in _places(mark) if _inside(name.box, frame)] or _places(mark)
        free = [name for name in options if not _covers(name.box, [*own, *others, *names, *lines])]
        clear = (name for name in free if not any(_covers(part, [*others, *names]) for part in name.line()))
        found[mark.point.label] = next(clear, next(iter(free), options[0]))
    return [found[mark.point.label] for mark in marks]


def _covers(box: Box, others: Sequence[Box]) -> bool:
    return any(box.overlaps(other) for other in others)


def _inside(box: Box, frame: Box) -> bool:
    across = frame.left <= box.left and box.right <= frame.right
    return across and frame.bottom <= box.bottom and box.top <= frame.top


def _places(mark: Mark) -> list[Name]:
    """Places for a label, the best first: right of its mark, left of it, over or under it, then further out."""
    width = _LETTER * len(mark.point.label)
    names = []
    for lift in (sign * 4.0 * step for step in range(60) for sign in (1, -1)):
        bottom = mark.y + lift - _LINE / 2
        for gap in (_MARK + 3, _MARK + 14, _MARK + 30, _MARK + 60):
            near = gap == _MARK + 3 and lift == 0
            right = Box(mark.x + gap, bottom, mark.x + gap + width, bottom + _LINE)
            left = Box(mark.x - gap - width, bottom, mark.x - gap, bottom + _LINE)
            names.append(Name(mark, right, "left", near, abs(lift) + gap))
            names.append(Name(mark, left, "right", near, abs(lift) + gap + 2))
        above = Box(mark.x - width / 2, bottom, mark.x + width / 2, bottom + _LINE)
        names.append(Name(mark, above, "center", False, abs(lift) + 8))
    return sorted(names, key=lambda name: name.cost)
