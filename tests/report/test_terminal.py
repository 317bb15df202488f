"""Tables and verdicts for the terminal."""

import dataclasses
import io

from rich.console import Console

from fpnlab.records.study_records import ClaimBootstrap, read_summary
from fpnlab.report.terminal import summary_table, verdict_text


def show(summary):
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table(summary))
    return console.file.getvalue()


def test_the_table_has_one_row_per_source_of_statistics_if_they_differ(study_dir):
    summary = read_summary(study_dir / "summary.json")
    text = show(summary)
    rows = [line for line in text.splitlines() if "BN" in line or "LN" in line]
    assert [line.split("│")[2].strip() for line in rows] == ["running", "precise", "batch", ""]
    row = next(
        row for row in summary.rows if (row.arm, row.axis_value, row.metric) == ("LN", 8, "AP")
    )
    assert f"{row.mean:.1f}±{row.high - row.mean:.1f}" in rows[3]
    assert "12 of 12 trials done" in text


def test_cells_without_a_value_or_interval_are_marked(study_dir, refresh):
    gone = {"status": "failed", "error": "out of memory", "metrics": {}}
    refresh(study_dir, LN_8_0=gone, LN_8_1=gone, LN_32_0=gone)
    text = show(read_summary(study_dir / "summary.json"))
    cells = next(line for line in text.splitlines() if "LN" in line).split("│")
    assert cells[4].strip() == "-"
    assert "±" not in cells[5]
    assert "±" in cells[3]


def test_verdict_text_lists_verdicts_and_outcomes(claiming_dir):
    summary = read_summary(claiming_dir / "summary.json")
    lines = verdict_text(summary).plain.splitlines()
    first, second = summary.verdicts
    assert lines == [
        f"{first.verdict}  BN changes more & sooner than LN.",
        *(f"  - {outcome.sentence}" for outcome in first.outcomes),
        f"{second.verdict}  LN is flat.",
        f"  - {second.outcomes[0].sentence}",
        'Each claim is tested separately (holm_over = "claim"): if all null hypotheses are true, '
        "one or more of these 2 claims is decided in up to 10 % of studies.",
    ]
    assert first.verdict == "SUPPORTED"
    assert verdict_text(summary).spans[0].style == "bold green"


def test_verdict_text_explains_the_family_of_tests(claiming_dir):
    summary = read_summary(claiming_dir / "summary.json")
    last = verdict_text(dataclasses.replace(summary, holm_over="study")).plain.splitlines()[-1]
    assert last == (
        "p-values are adjusted by Holm's procedure over the rules of all 2 claims: if all null "
        "hypotheses are true, one or more is rejected in at most 5 % of studies."
    )
    one = dataclasses.replace(summary, verdicts=summary.verdicts[:1])
    assert "claim" not in verdict_text(one).plain.splitlines()[-1]


def test_intervals_that_exceed_0_to_100_are_marked(study_dir, refresh):
    summary = read_summary(study_dir / "summary.json")
    within = lambda row: dataclasses.replace(row, low=row.mean - 1.0, high=row.mean + 1.0)
    rows = [within(row) for row in summary.rows if row.metric == "AP"]
    assert "*" not in show(dataclasses.replace(summary, rows=rows))
    assert "exceeds 0 to 100" not in show(dataclasses.replace(summary, rows=rows))
    for name, bound in (("high", 100.5), ("low", -0.5)):
        changed = [dataclasses.replace(rows[0], **{name: bound}), *rows[1:]]
        text = show(dataclasses.replace(summary, rows=changed))
        assert text.count("*") == 2
        assert "* The confidence interval exceeds 0 to 100" in " ".join(text.split())


def test_a_bootstrap_interval_follows_its_rule(claiming_dir):
    summary = read_summary(claiming_dir / "summary.json")
    found = ClaimBootstrap(
        claim=0,
        rule=1,
        place="",
        low=0.0,
        high=1.0,
        level=0.95,
        n=3,
        items=9,
        agrees=True,
        sentence="Bootstrap.",
    )
    with_one = dataclasses.replace(summary, claim_bootstrap=[found])
    lines = verdict_text(with_one).plain.splitlines()
    plain = verdict_text(summary).plain.splitlines()
    assert lines == [*plain[:3], "    Bootstrap.", *plain[3:]]
