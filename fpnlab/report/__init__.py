"""Reports of studies and runs from their folders, without data or models.

``write_report`` writes the HTML page of a study and ``write_run_report`` that of a single run;
the other functions format a summary for the terminal. Matplotlib is imported
only when a figure is drawn.
"""

from fpnlab.report.page import write_report, write_run_report
from fpnlab.report.terminal import (
    answer_text,
    comparison_table,
    summary_table,
    verdict_text,
)

__all__ = [
    "answer_text",
    "comparison_table",
    "summary_table",
    "verdict_text",
    "write_report",
    "write_run_report",
]
