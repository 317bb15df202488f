"""Reports of studies and runs from their folders, without data or models.

``write_report`` writes the HTML page of a study and ``write_run_report`` that of a single run;
``summary_table`` and ``verdict_text`` format a summary for the terminal. Matplotlib is imported
only when a figure is drawn.
"""

from fpnlab.report.page import write_report, write_run_report
from fpnlab.report.terminal import summary_table, verdict_text

__all__ = ["summary_table", "verdict_text", "write_report", "write_run_report"]
