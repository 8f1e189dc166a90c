"""What people read of a run: `report.html`, `learning_curve.svg`, the table on the terminal. All from `RunResult`."""

from peftkit.report.files import LEARNING_CURVE_FILE, REPORT_FILE, write_report
from peftkit.report.terminal import summary_table

__all__ = ["LEARNING_CURVE_FILE", "REPORT_FILE", "summary_table", "write_report"]
