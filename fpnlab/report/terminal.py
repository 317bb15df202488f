"""Tables and verdicts of a study for the terminal."""

from rich.table import Table
from rich.text import Text

from fpnlab.records.plain_text import visible
from fpnlab.records.study_records import Summary
from fpnlab.report.comparison_matrix import comparison_matrix
from fpnlab.report.tables import (
    bounds_note,
    claim_bootstrap,
    family_note,
    mean_and_half_width,
    means_by_axis,
)

STYLES = {"SUPPORTED": "bold green", "REFUTED": "bold red", "PARTIAL": "bold yellow"}
"""Text styles of verdicts."""


def summary_table(summary: Summary) -> Table:
    """Returns the study's metric as a table: arms as rows, axis values as columns.

    A cell is the mean over seeds in points, with the half width of its 95 % confidence interval.
    An arm has one row per source of batch-norm statistics if these differ.
    """
    counts, lines = summary.counts, means_by_axis(summary, summary.metric)
    note = bounds_note(lines)
    table = Table(
        title=_text(f"{summary.metric} by {summary.axis_label}"),
        caption=_text(
            f"{counts['done']} of {counts['planned']} trials done. "
            "Points: mean over seeds ± half the width of the 95 % confidence interval (Student-t)."
            f"{' ' if note else ''}{note}"
        ),
    )
    table.add_column("arm")
    table.add_column("source")
    for value in summary.axis_values:
        table.add_column(_text(str(value)), justify="right")
    for line in lines:
        # Without spaces, five columns fit into a terminal of 80 characters.
        cells = [mean_and_half_width(cell).replace(" ", "") for cell in line.cells]
        table.add_row(*(_text(text) for text in (line.arm, line.evaluation, *cells)))
    return table


def answer_text(summary: Summary) -> Text:
    """Returns the sentences that answer a study's question, one in a line."""
    sentences = summary.answer.sentences if summary.answer else summary.findings
    return Text("\n".join(map(visible, sentences)))


def comparison_table(summary: Summary) -> Table | None:
    """Returns the comparisons of pairs of arms by axis value as a table; None without any."""
    if (matrix := comparison_matrix(summary)) is None:
        return None
    notes = Text("\n".join(map(visible, matrix.notes)))
    table = Table(title=_text(matrix.caption), caption=notes)
    table.add_column(_text(matrix.corner))
    for value in summary.axis_values:
        table.add_column(_text(str(value)), justify="right")
    for line in matrix.lines:
        cells = [_text(cell.text.replace(" ", "")) for cell in line.cells]
        table.add_row(_text(line.name), *cells)
    return table


def verdict_text(summary: Summary) -> Text:
    """Returns the verdict on each claim of a study, followed by the outcomes of its rules."""
    text = Text()
    for claim, verdict in enumerate(summary.verdicts):
        text.append(verdict.verdict, style=STYLES.get(verdict.verdict, "bold"))
        text.append(f"  {visible(verdict.statement)}\n")
        for rule, outcome in enumerate(verdict.outcomes):
            text.append(f"  - {visible(outcome.sentence)}\n")
            for interval in claim_bootstrap(summary, claim, rule):
                text.append(f"    {visible(interval.sentence)}\n", style="dim")
    if note := family_note(summary):
        text.append(f"{note}\n", style="dim")
    return text


def _text(content: str) -> Text:
    """Returns text without markup, and without characters that would steer the terminal."""
    return Text(visible(content))
