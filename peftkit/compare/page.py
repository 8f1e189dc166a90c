"""`index.html` of a comparison: one page, no script, no reference to anything outside itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftkit.compare import table
from peftkit.compare.picture import picture, points_of
from peftkit.compare.summary import Comparison, Summary
from peftkit.report import wording

if TYPE_CHECKING:
    from jinja2 import Environment

_WORDS = ("number", "count", "plain_name")


def render_page(comparison: Comparison) -> str:
    """The comparison as HTML; the same comparison gives the same text."""
    from markupsafe import Markup

    drawn = picture(comparison)
    costs = [*table.cost_columns(), table.Column("steps", table.duration_of_training)]
    return (
        environment("compare")
        .get_template("comparison.html.jinja")
        .render(
            comparison=comparison,
            best=comparison.summaries[0],
            metric=wording.plain_name(comparison.score.metric),
            level=table.INTERVAL,
            verdict=table.verdict(comparison),
            warnings=list(table.warnings(comparison)),
            picture=Markup(drawn) if drawn else None,
            drawn=len(points_of(comparison)),
            costs=costs,
            runs_in_words=table.runs_in_words,
            size_columns=_size_columns(),
            learning_rate=table.learning_rate,
            settings=_settings,
            failed=sum(map(len, comparison.failures.values())),
            planned=len(comparison.labels) * len(comparison.seeds),
        )
    )


def _size_columns() -> list[table.Column]:
    return [
        table.Column("trainable", lambda summary: f"{summary.first.model.trainable_parameters:,}"),
        table.Column("share", _share),
        table.Column("without head", lambda summary: f"{summary.adapter_parameters:,}"),
        table.Column("head", lambda summary: f"{summary.first.model.head_parameters:,}"),
        table.Column("saved", lambda summary: wording.size(summary.saved_bytes)),
    ]


def _share(summary: Summary) -> str:
    return wording.share(summary.first.model.trainable_parameters, summary.first.model.total_parameters)


def _settings(summary: Summary) -> str:
    """Options of the tuning method, as its recipe has them."""
    method = summary.first.recipe["method"]
    given = method if isinstance(method, dict) else {}
    return ", ".join(f"{key} {value}" for key, value in given.items() if key != "name" and value not in (None, [], {}))


def environment(package: str) -> Environment:
    """Templates of a package of peftkit, with the words and the style of all reports."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    templates = Environment(
        loader=PackageLoader("peftkit", package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {name: getattr(wording, name) for name in _WORDS}
    source, _, _ = PackageLoader("peftkit", "report").get_source(templates, "report.css")
    templates.globals["style"] = Markup(source)
    return templates
