"""Files of a study to a page, figures and tables: reads folders, knows no model.

``write_report`` makes the page of a study, ``write_run_report`` that of a single run, and
``summary_table`` and ``verdict_text`` what the terminal shows of one. Matplotlib is loaded only
when a figure is drawn.
"""

from fpnlab.report.page import write_report, write_run_report
from fpnlab.report.terminal import summary_table, verdict_text

__all__ = ["summary_table", "verdict_text", "write_report", "write_run_report"]
