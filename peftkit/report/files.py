"""The report's files in a run folder."""

from __future__ import annotations

from pathlib import Path

from peftkit.results import RunResult

REPORT_FILE = "report.html"
LEARNING_CURVE_FILE = "learning_curve.svg"


def write_report(result: RunResult, run_dir: Path) -> Path:
    """Write `report.html` and `learning_curve.svg`; each appears whole or not at all.

    The same result gives the same bytes. Without any finite value in the history there is no `learning_curve.svg`.

    Returns:
        The path of `report.html`.
    """
    from peftkit.report.charts import learning_curve
    from peftkit.report.page import render_page

    curve = learning_curve(result)
    if curve is not None:
        _write(run_dir / LEARNING_CURVE_FILE, curve)
    return _write(run_dir / REPORT_FILE, render_page(result))


def _write(path: Path, text: str) -> Path:
    staged = path.with_name(f".{path.name}.part")
    staged.write_text(text, "utf-8")
    staged.replace(path)
    return path
