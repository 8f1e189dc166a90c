"""`report.html`: one page, no script, no reference to anything outside itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peftkit.report import wording
from peftkit.report.charts import Curve, curve_chart, curves
from peftkit.report.confusion import ClassificationView, classification_view
from peftkit.report.ranks import rank_view
from peftkit.report.scores import chosen_by, main_score
from peftkit.results import RANK_PREFIX, ArtifactRecord, RunResult

if TYPE_CHECKING:
    from jinja2 import Environment

WORST_SHOWN = 8
_VALIDATION = "validation_"


@dataclass(frozen=True)
class Panel:
    """One chart of the learning curves.

    Args:
        svg: None where no value was finite.
        keys: series in the chart, for its legend.
        missing: values that could not be drawn because they are not finite.
    """

    title: str
    svg: str | None
    keys: tuple[str, ...]
    missing: int


@dataclass(frozen=True)
class Evaluation:
    """A row of the table beside the learning curves."""

    step: int
    epoch: float
    loss: float | None
    values: tuple[float | None, ...]


def render_page(result: RunResult) -> str:
    """The report as HTML; the same result gives the same text."""
    import yaml

    found = curves(result)
    validated = [key for key in found if key.startswith(_VALIDATION)]
    main = main_score(result)
    splits = sorted(result.splits, key=lambda split: main is None or split != main.split)
    details = {split: result.splits[split].classification for split in splits}
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            run=result,
            main=main,
            splits=splits,
            metric_names=list(dict.fromkeys(name for split in splits for name in result.splits[split].metrics)),
            chosen=chosen_by(result),
            level=_level(result),
            panels=list(_main_panels(result, found)),
            other_panels=list(_other_panels(found)),
            ranks=rank_view(result),
            evaluations=list(_evaluations(result, validated)),
            validated=[key if key == f"{_VALIDATION}loss" else key.removeprefix(_VALIDATION) for key in validated],
            artifacts=list(_artifacts(result)),
            classification={split: _view(split, detail) for split, detail in details.items() if detail},
            worst={split: result.splits[split].worst for split in splits if result.splits[split].worst},
            worst_shown=WORST_SHOWN,
            method=_named(result, "method"),
            task=_named(result, "task"),
            recipe_yaml=yaml.safe_dump(dict(result.recipe), sort_keys=False, allow_unicode=True, width=100),
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("peftkit", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("number", "share", "count", "duration", "size", "plain_name", "origin")
    environment.filters |= {name: getattr(wording, name) for name in names}
    source, _, _ = PackageLoader("peftkit", "report").get_source(environment, "report.css")
    environment.globals["style"] = Markup(source)
    return environment


def _level(result: RunResult) -> str | None:
    levels = {interval.level for record in result.splits.values() for interval in record.intervals.values()}
    return f"{100 * levels.pop():g} %" if len(levels) == 1 else None


def _main_panels(result: RunResult, found: dict[str, Curve]) -> Iterator[Panel]:
    """Losses first, then the deciding metric, then the others."""
    best_step = result.best_step if any(key.startswith(_VALIDATION) for key in found) else None
    losses = [found[key] for key in ("loss", f"{_VALIDATION}loss") if key in found]
    if losses:
        yield _panel("Loss", losses, best_step=best_step)
    scores = [key for key in found if key.startswith(_VALIDATION) and key != f"{_VALIDATION}loss"]
    for key in sorted(scores, key=lambda key: key != result.best_metric):
        title = f"{wording.plain_name(key.removeprefix(_VALIDATION))} on validation"
        yield _panel(title, [found[key]], best_step=best_step)


def _other_panels(found: dict[str, Curve]) -> Iterator[Panel]:
    for key, curve in found.items():
        if key != "loss" and not key.startswith((_VALIDATION, RANK_PREFIX)):
            yield _panel(wording.plain_name(key), [curve], best_step=None)


def _panel(title: str, drawn: list[Curve], *, best_step: int | None) -> Panel:
    from markupsafe import Markup

    spoken = f"{title} by optimizer step" + (f"; best step {best_step}" if best_step is not None else "")
    svg = curve_chart(drawn, best_step=best_step, title=spoken)
    missing = sum(len(curve.values) - curve.finite for curve in drawn)
    return Panel(title, Markup(svg) if svg else None, tuple(curve.key for curve in drawn), missing)


def _evaluations(result: RunResult, validated: list[str]) -> Iterator[Evaluation]:
    """Points with validation values, beside the newest training loss."""
    loss: float | None = None
    for point in result.history:
        loss = point.values.get("loss", loss)
        if any(key in point.values for key in validated):
            yield Evaluation(point.step, point.epoch, loss, tuple(point.values.get(key) for key in validated))


def _artifacts(result: RunResult) -> Iterator[tuple[str, ArtifactRecord]]:
    yield "Base model", result.model.artifact
    for artifact in result.data.artifacts:
        yield "Data", artifact


def _view(split: str, detail: Any) -> ClassificationView:
    return classification_view(detail, split=split)


def _named(result: RunResult, part: str) -> dict[str, Any]:
    """A component of the resolved recipe as a mapping with its name."""
    found = result.recipe.get(part)
    if isinstance(found, str):
        return {"name": found}
    return dict(found) if isinstance(found, dict) and "name" in found else {"name": "unknown"}
