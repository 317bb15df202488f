"""Pages of studies and runs, and ``table.csv``."""

import csv
import html.parser
import json
import re
import shutil

import numpy as np
import pytest

from fpnlab.report import write_report, write_run_report
from fpnlab.report.tables import group_sizes


class Page(html.parser.HTMLParser):
    """Text, sources and links of a page; asserts that all tags are closed."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.text, self.sources, self.tags, self.open = "", [], set(), []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(path):
    """The page, which lacks nothing."""
    page = Page(path.read_text(encoding="utf-8"))
    assert "Left out" not in page.text, page.text[page.text.index("Left out") :][:1000]
    return page


def rows(study_dir):
    with (study_dir / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_page_needs_no_other_file_and_no_script(study_dir):
    page = read(write_report(study_dir))
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not page.tags & {"script", "link", "iframe"}


def test_the_page_has_question_findings_and_state(study_dir):
    page = read(write_report(study_dir))
    study = json.loads((study_dir / "study.json").read_text())
    summary = json.loads((study_dir / "summary.json").read_text())
    assert study["question"] in page.text
    assert all(finding in page.text for finding in summary["findings"])
    assert "12 of 12 trials are done." in page.text
    assert study["dataset"]["problems"][0]["what"] in page.text


def test_a_difference_that_rounds_to_zero_has_no_sign(study_dir):
    summary = json.loads((study_dir / "summary.json").read_text())
    for row in summary["differences"]:
        row["mean"] = -0.01
    (study_dir / "summary.json").write_text(json.dumps(summary))
    assert not re.search(r"-0\.0\b", read(write_report(study_dir)).text)


def test_claims_come_first_with_verdict_rules_and_figure(claiming_dir):
    plain = len(read(write_report(claiming_dir)).sources)
    page = read(claiming_dir / "report.html")
    summary = json.loads((claiming_dir / "summary.json").read_text())
    at = page.text.index("Answer")
    for verdict in summary["verdicts"]:
        at = page.text.index(f"{verdict['verdict']} {verdict['statement']}", at)
        for outcome in verdict["outcomes"]:
            at = page.text.index(outcome["sentence"], at)
        at = page.text.index(f"SHA-256 {verdict['hash'][:12]}", at)
    assert page.text.index(summary["findings"][0]) > at
    files = sorted((claiming_dir / "figures").glob("claim_*.png"))
    assert [file.stem for file in files] == ["claim_1", "claim_2"]
    assert len(list((claiming_dir / "figures").glob("*.png"))) == plain


@pytest.mark.parametrize(
    ("holm_over", "scope", "family"),
    [
        ("claim", "rules of this claim", "is decided in up to 10 % of studies"),
        ("study", "rules of all claims", "is rejected in at most 5 % of studies"),
    ],
)
def test_the_page_explains_the_family_of_tests(claiming_dir, refresh, holm_over, scope, family):
    study = json.loads((claiming_dir / "study.json").read_text())
    (claiming_dir / "study.json").write_text(json.dumps(study | {"holm_over": holm_over}))
    text = read(write_report(refresh(claiming_dir))).text
    # The second claim has a single rule, for which nothing is adjusted.
    assert text.count(f"Holm's procedure over the {scope}") == {"claim": 1, "study": 2}[holm_over]
    assert family in text


def test_the_page_explains_the_treatment_of_failed_trials(claiming_dir, refresh):
    refresh(claiming_dir, BN_2_0={"status": "diverged", "metrics": {}})
    text = " ".join(read(write_report(claiming_dir)).text.split())
    note = "Diverged or failed: BN at batch size 2 (1 seed). Leaving them out biases the mean"
    assert (
        f"At batch size 2, LN minus BN. {note} downward, so that only above can be decided." in text
    )
    assert f"Above 0: undecided (p = 1). {note}" not in text
    # Both rules of the first claim need the trial, one of them on both sides.
    outcomes = json.loads((claiming_dir / "summary.json").read_text())["verdicts"][0]["outcomes"]
    assert f"{note} upward" in outcomes[0]["sentence"]
    assert "Diverged" not in outcomes[1]["sentence"]
    assert outcomes[0]["sentence"] in text
    assert "In comparisons they count as worse than any number" in text


def test_intervals_that_exceed_0_to_100_are_marked_and_explained(study_dir):
    path = study_dir / "summary.json"
    summary = json.loads(path.read_text())
    for row in summary["rows"]:
        if row["mean"] is not None:
            row |= {"low": row["mean"] - 1.0, "high": row["mean"] + 1.0}
    path.write_text(json.dumps(summary))
    plain = read(write_report(study_dir)).text
    assert "± 1.0*" not in plain
    assert "exceeds 0 to 100" not in plain
    row = next(r for r in summary["rows"] if (r["metric"], r["evaluation"]) == ("AP", "running"))
    row["high"] = 100.5
    path.write_text(json.dumps(summary))
    text = read(write_report(study_dir)).text
    assert f"{row['mean']:.1f} ± {100.5 - row['mean']:.1f}*" in text
    assert text.count("* The confidence interval exceeds 0 to 100") == 1


def test_bootstrap_intervals_follow_their_rules_and_t_intervals(claiming_dir):
    path = claiming_dir / "summary.json"
    summary = json.loads(path.read_text())
    assert "bootstrap" not in read(write_report(claiming_dir)).text.lower()
    summary["claim_bootstrap"] = [
        {"claim": 0, "rule": 1, "sentence": "Bootstrap <here>.", "place": "", "low": 0, "high": 1}
        | {"level": 0.95, "n": 3, "items": 9, "agrees": True}
    ]
    rows = [
        r for r in summary["differences"] if (r["metric"], r["evaluation"]) == ("AP", "running")
    ]
    rows[1]["bootstrap"] = {"low": 1.25, "high": 7.0, "items": 73, "verdict": "above"}
    path.write_text(json.dumps(summary))
    page = read(write_report(claiming_dir))
    first, second = summary["verdicts"][0]["outcomes"]
    at = page.text.index("Bootstrap <here>.")
    assert page.text.index(first["sentence"]) < page.text.index(second["sentence"]) < at
    assert at < page.text.index(summary["verdicts"][1]["statement"])
    cells = "".join(page.text.split())
    assert "95%confidenceintervalbootstrapintervalseedsverdict" in cells
    assert cells.count("1.2to7.0") == 1
    assert "it covers the true value in only 75 to 88 % of cases" in " ".join(page.text.split())


def test_an_old_summary_without_verdicts_has_a_page(study_dir):
    summary = json.loads((study_dir / "summary.json").read_text())
    del summary["verdicts"]
    (study_dir / "summary.json").write_text(json.dumps(summary))
    assert "12 of 12 trials are done." in read(write_report(study_dir)).text


def test_names_are_escaped_in_html(study_dir):
    text = write_report(study_dir).read_text()
    assert "BCCD &lt;blood cells&gt;" in text
    assert "<blood" not in text


def test_every_figure_is_a_file_below_300_kb(study_dir):
    page = read(write_report(study_dir))
    files = list((study_dir / "figures").glob("*.png"))
    names = {"AP", "AP50", "difference", "evaluations_BN", "loss_BN", "loss_LN"}
    names |= {"drift_mean", "drift_variance", "rates_axis", "signals_arms", "noise_arms"}
    assert {file.stem for file in files} == names | {"gallery_1", "gallery_2"}
    assert len(files) == len(page.sources)
    assert max(file.stat().st_size for file in files) < 300_000


def test_the_csv_has_one_row_per_trial_and_evaluation_with_exact_metrics(study_dir):
    write_report(study_dir)
    table = rows(study_dir)
    assert len(table) == 12 * 3
    for row in table:
        result = json.loads((study_dir / "trials" / row["trial"] / "result.json").read_text())
        assert float(row["AP"]) == result["metrics"][row["evaluation"]]["AP"]
        assert (row["AP_small"], int(row["batch_size"])) == ("", result["axis_value"])
        np.testing.assert_allclose(
            float(row["examples_per_second"]), result["examples"] / result["seconds"]
        )


def test_failed_diverged_and_missing_trials_are_listed_with_reasons(study_dir, refresh):
    gone = {"metrics": {}, "final_loss": None}
    refresh(
        study_dir,
        BN_2_0={"status": "diverged", "error": "loss is nan after 96 examples", **gone},
        LN_8_1={"status": "failed", "error": "out of <memory>", **gone},
    )
    for trial in ("LN-8-1", "LN-32-1"):
        (study_dir / "trials" / trial / "result.json").unlink()
    shutil.rmtree(study_dir / "trials" / "LN-32-0")
    with (study_dir / "trials" / "LN-32-1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "examples": 30000, "lo')
    page = read(write_report(study_dir))
    state = "8 of 12 trials are done; 1 diverged, 1 failed, 1 unfinished, 1 not started."
    assert state in page.text
    assert "loss is nan after 96 examples" in page.text
    assert "out of <memory>" in page.text
    assert "no result yet; 20,000 examples seen" in page.text
    assert {row["trial"]: row["status"] for row in rows(study_dir)}["BN-2-0"] == "diverged"


def test_an_arm_without_the_axis_has_no_axis_value(study_dir, refresh):
    for trial in ("LN-8-0", "LN-8-1", "LN-32-0", "LN-32-1"):
        shutil.rmtree(study_dir / "trials" / trial)
    refresh(study_dir, LN_2_0={"axis_value": None}, LN_2_1={"axis_value": None})
    page = read(write_report(study_dir))
    assert "LN-2-0LNany0done" in "".join(page.text.split())
    line = next(row for row in rows(study_dir) if row["trial"] == "LN-2-0")
    assert line["batch_size"] == ""


def test_a_study_without_a_summary_lists_its_trials(study_dir):
    (study_dir / "summary.json").unlink()
    page = read(write_report(study_dir))
    assert "no arms are compared" in page.text
    assert (study_dir / "figures" / "gallery_1.png").is_file()


def test_a_study_without_trials_has_a_page(study_dir, refresh):
    shutil.rmtree(study_dir / "trials")
    refresh(study_dir)
    page = read(write_report(study_dir))
    assert "0 of 12 trials are done; 12 not started." in page.text
    assert "No trial is done yet." in page.text


def test_a_study_with_one_seed_has_no_verdicts(study_dir, refresh):
    for folder in (study_dir / "trials").glob("*-1"):
        shutil.rmtree(folder)
    refresh(study_dir)
    page = read(write_report(study_dir))
    assert "with 1 seed, too few for a confidence interval" in page.text
    assert "LN above BN" not in page.text


def test_missing_galleries_are_left_out(study_dir):
    for path in (study_dir / "trials").glob("*/gallery.npz"):
        path.unlink()
    page = read(write_report(study_dir))
    assert "Test images" not in page.text


def test_the_page_is_reproducible(study_dir):
    first = write_report(study_dir).read_bytes()
    assert write_report(study_dir).read_bytes() == first


def test_a_run_has_a_page(study_dir):
    run = study_dir / "trials" / "BN-2-0"
    page = read(write_run_report(run))
    files = {file.stem for file in (run / "figures").glob("*.png")}
    assert files == {"loss", "gallery", "drift", "rates", "signals", "rates_course", "noise"}
    assert len(page.sources) == len(files)
    assert "Measured at step 1,250, with a learning rate of 0.005." in page.text
    assert "AP50/Platelets" in page.text
    assert "WBC, predicted" in page.text
    result = json.loads((run / "result.json").read_text())
    assert f"{100 * result['metrics']['precise']['AP']:.1f}" in page.text


def test_an_unfinished_run_has_a_page(study_dir):
    run = study_dir / "trials" / "BN-2-0"
    for name in ("result.json", "gallery.npz"):
        (run / name).unlink()
    page = read(write_run_report(run))
    assert "unfinished: no result yet; 20,000 examples seen" in page.text
    assert {file.stem for file in (run / "figures").glob("*.png")} == {"loss", "rates_course"}


def test_old_folders_without_diagnostics_have_pages(study_dir):
    for path in (study_dir / "trials").glob("*/result.json"):
        result = json.loads(path.read_text())
        del result["diagnostics"]
        path.write_text(json.dumps(result))
        lines = (path.parent / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        for record in records:
            del record["effective_rate"]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (path.parent / "metrics.jsonl").write_text(text)
    page = read(write_report(study_dir))
    assert "12 of 12 trials are done." in page.text
    assert "Diagnostics" not in page.text
    page = read(write_run_report(study_dir / "trials" / "BN-2-0"))
    assert len(page.sources) == 2
    assert "Diagnostics" not in page.text


def test_write_run_report_rejects_a_folder_without_a_run(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"not the folder of a run .* give a folder written"
    ):
        write_run_report(tmp_path)


@pytest.mark.parametrize(
    ("norm_batch", "shown"),
    [
        ({"stem": None, "head": None}, None),
        ({"stem": 16, "head": 16}, 16),
        ({"stem": None, "head": 2}, "head=2"),
        ({"stem": 16, "head": 2}, "stem=16 head=2"),
    ],
)
def test_group_sizes_is_one_number_if_all_positions_agree(norm_batch, shown):
    assert group_sizes(norm_batch) == shown


def test_the_page_warns_of_a_backend_with_wrong_results(study_dir):
    trial = next((study_dir / "trials").iterdir())
    (trial / "env.json").write_text(json.dumps({"known_cases": "wrong: a product"}))
    page = write_report(study_dir).read_text()
    count = len(list((study_dir / "trials").iterdir()))
    assert f"1 of {count} trials: its backend failed the known cases (wrong: a product)" in page
    alone = write_run_report(trial).read_text()
    assert "These numbers may be wrong" in alone
