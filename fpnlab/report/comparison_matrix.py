"""The table of all comparisons of a study: pairs of arms as rows, axis values as columns."""

import math
from typing import NamedTuple

from fpnlab.records.study_records import Answer, Summary, SummaryRow, Verdict

MARKS: dict[Verdict, str] = {"above": "▲", "below": "▼", "undecided": "○", "unmeasured": "-"}
"""Marks of verdicts, which are read without color."""
FAILED = "†"
"""Mark of comparisons with failed trials."""
FAR = "‡"
"""Mark of comparisons with an outlying seed."""


class MatrixCell(NamedTuple):
    """A comparison at one axis value."""

    text: str
    """Mark of the verdict, difference and half width of its interval."""
    verdict: Verdict
    """The verdict."""


class MatrixLine(NamedTuple):
    """A pair of arms."""

    name: str
    """The difference in words, such as "LN minus BN"."""
    cells: list[MatrixCell]
    """One cell per axis value."""


class ComparisonMatrix(NamedTuple):
    """The table of all comparisons."""

    corner: str
    """Head of the first column."""
    lines: list[MatrixLine]
    """One line per pair of arms."""
    caption: str
    """The numbers in the cells."""
    notes: list[str]
    """The marks, the number of decisions to expect by chance, and further outlying seeds."""


def comparison_matrix(summary: Summary) -> ComparisonMatrix | None:
    """Returns the table of comparisons; None for an old summary, and without any comparison."""
    answer = summary.answer
    if answer is None or not answer.comparisons:
        return None
    rows = {(row.arm, row.reference, row.axis_value): row for row in answer.comparisons}
    far = {(seed.arm, seed.reference, seed.axis_value) for seed in answer.outlying}
    pairs = list(dict.fromkeys((row.arm, row.reference) for row in answer.comparisons))
    baseline_only = len(pairs) < math.comb(len(summary.arms), 2)
    lines = []
    for arm, reference in pairs:
        # If the axis applies to neither arm, their one comparison counts at every value.
        keys = [(arm, reference, value) for value in summary.axis_values]
        keys = [key if key in rows else (arm, reference, None) for key in keys]
        cells = [_cell(rows.get(key), key in far) for key in keys]
        lines.append(MatrixLine(arm if baseline_only else f"{arm} minus {reference}", cells))
    return ComparisonMatrix(
        corner=f"minus {summary.arms[0]}" if baseline_only else summary.axis_label,
        lines=lines,
        caption=f"Difference in {summary.metric} in points, paired by seed, ± half width of the "
        f"{100 * summary.level:g} % confidence interval (Student-t)",
        # The answer's third sentence has the first outlying seed.
        notes=[
            _legend(summary, answer, baseline_only),
            *(seed.sentence for seed in answer.outlying[1:]),
        ],
    )


def _cell(row: SummaryRow | None, far: bool) -> MatrixCell:
    if row is None:
        return MatrixCell(MARKS["unmeasured"], "unmeasured")
    verdict = row.verdict or "unmeasured"
    parts = [] if verdict == "unmeasured" and row.mean is not None else [MARKS[verdict]]
    parts += [] if row.mean is None else [f"{row.mean:z.1f}"]
    parts += [] if row.mean is None or row.high is None else [f"± {row.high - row.mean:.1f}"]
    return MatrixCell(f"{' '.join(parts)}{FAILED * bool(row.failures)}{FAR * far}", verdict)


def _legend(summary: Summary, answer: Answer, baseline_only: bool) -> str:
    """Returns the meanings of marks, the choice of pairs, and the number of comparisons."""
    rows, arms = answer.comparisons, summary.arms
    verdicts = [row.verdict or "unmeasured" for row in rows]
    first, second = ("the arm", arms[0]) if baseline_only else ("the first arm", "the second")
    first, second = (arms[1], arms[0]) if len(arms) == 2 else (first, second)
    meanings: dict[Verdict, str] = {
        "above": f"{first} is above {second}",
        "below": f"{first} is below {second}",
        "undecided": "undecided, which does not mean equal",
        "unmeasured": "not measured (without ±: one seed)",
    }
    marks = [f"{MARKS[verdict]} {meanings[verdict]}" for verdict in MARKS if verdict in verdicts]
    if any(row.failures for row in rows):
        marks.append(f"{FAILED} trials failed, and no decision favors their arm")
    if any(seed.reference for seed in answer.outlying):
        marks.append(f"{FAR} one seed lies far from the others")
    parts = [f"{'; '.join(marks)}."]
    if baseline_only:
        parts.append(f"Of {len(arms)} arms, only the pairs with {arms[0]} are compared.")
    if (measured := len(rows) - verdicts.count("unmeasured")) > 1:
        chance = f"{measured * (1 - summary.level):.2g}"
        verb = "is" if chance == "1" else "are"
        parts.append(
            f"The intervals are not adjusted for their number: of {measured} comparisons without "
            f"any true difference, {chance} {verb} decided wrongly on average."
        )
        if decided := verdicts.count("above") + verdicts.count("below"):
            verb = "remains" if answer.adjusted == 1 else "remain"
            parts.append(f"With Holm's adjustment, {answer.adjusted} of {decided} {verb} decided.")
    return " ".join(parts)
