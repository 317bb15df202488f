"""Verdicts reproduced from ``table.csv`` and the config alone."""

import csv
import dataclasses
import json

import pytest

from fpnlab.analysis.summary import judge_results
from fpnlab.analysis.table_results import judge_table, results_from_table
from fpnlab.config.claims import Claim, Difference, DifferenceInDifferences
from fpnlab.config.study import Axis, Study, study_file
from fpnlab.records.study_records import write_record
from fpnlab.report.study_folder import read_study
from fpnlab.report.tables import write_csv

from .cases import results_of

PAIR = {"arm": "BN", "baseline": "LN", "side": "below"}
STUDY = Study(
    axes=(Axis(field="train.norm_batch", values=(2, 0.5, None), only=("BN", "GN")),),
    seeds=(0, 1, 2),
    arms={"BN": {}, "LN": {}, "GN": {}},
    claims=(
        Claim(
            statement="BN loses.",
            rules=(
                DifferenceInDifferences(**PAIR, start=0.5, end=2, threshold=-1.0),
                Difference(**PAIR | {"baseline": "GN"}, axis_values=(None, 2), evaluation="batch"),
            ),
        ),
    ),
)

PLAN = study_file(STUDY, name="", trials=21)


def results():
    found = []
    for seed in STUDY.seeds:
        for place in STUDY.places():
            ap = 0.4 + 0.01 * seed + 0.001 * len(found)
            ap -= 0.1 * (place.arm == "BN") * (place.axis_value == 2)
            found.append(
                {
                    "trial": f"{place.arm}-{place.axis_value}-{seed}",
                    "arm": place.arm,
                    "axis_value": place.axis_value,
                    "seed": seed,
                    "status": "done",
                    "metrics": {
                        "running": {"AP": ap, "AP_small": None},
                        "batch": {"AP": ap / 2, "AP_small": None},
                    },
                    "examples": 10,
                    "seconds": 1.0,
                }
            )
    return found


def table(folder, found):
    """Writes the report table of the results and returns its rows."""
    for result in found:
        run = folder / "trials" / result["trial"]
        run.mkdir(parents=True)
        if result["status"] != "unfinished":
            (run / "result.json").write_text(json.dumps(result))
    write_record(folder / "study.json", PLAN)
    write_csv(read_study(folder), folder / "table.csv")
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_verdicts_from_the_table_equal_those_from_the_results(tmp_path):
    found = results()
    found[0]["metrics"]["batch"]["AP"] = None
    [verdict] = judge_table(STUDY, table(tmp_path, found))
    assert [verdict] == judge_results(PLAN, results_of(found))
    assert verdict.outcomes[0].decision == "supported"
    assert verdict.outcomes[1].estimates[0].by_seed.keys() == {1, 2}


def test_the_table_distinguishes_diverged_from_unfinished_trials(tmp_path):
    found = results()
    found[0] |= {"status": "diverged", "metrics": {}}
    expected = judge_results(PLAN, results_of(found))
    assert judge_table(STUDY, table(tmp_path / "a", found)) == expected
    found[0]["status"] = "unfinished"
    [verdict] = judge_table(STUDY, table(tmp_path / "b", found))
    assert verdict.verdict == "INCONCLUSIVE"
    assert "not all of its trials have ended" in verdict.outcomes[0].sentence


def test_an_axis_with_the_name_of_another_column_has_its_own_column(tmp_path):
    """The effective ``norm_batch`` is a column of every table."""
    found = results()
    found[0]["norm_batch"] = {"stem": 16}
    row = table(tmp_path, found)[0]
    assert (row["axis_value"], row["norm_batch"]) == ("2", "16")


def test_results_from_table_rejects_an_unknown_axis_value(tmp_path):
    rows = table(tmp_path, results())
    rows[0]["axis_value"] = "8"
    with pytest.raises(
        ValueError, match=r"axis_value: unknown value 8; expected one of 2, 0.5, none"
    ):
        results_from_table(STUDY, rows)


def test_a_name_that_a_spreadsheet_takes_for_a_formula_is_read_back(tmp_path, monkeypatch):
    found = results()
    odd = {"BN": "=BN()", "LN": "'=LN", "GN": "+GN"}
    for result in found:
        result["arm"] = odd[result["arm"]]
        result["trial"] = f"-{result['trial']}"
    plan = dataclasses.replace(PLAN, arms=[odd[arm] for arm in PLAN.arms])
    monkeypatch.setitem(globals(), "PLAN", plan)
    rows = table(tmp_path, found)
    assert {row["arm"] for row in rows} == {"'=BN()", "''=LN", "'+GN"}
    assert {row["trial"][:2] for row in rows} == {"'-"}
    read = {result.trial: result for result in results_from_table(STUDY, rows)}
    assert {name: result.arm for name, result in read.items()} == {
        result["trial"]: result["arm"] for result in found
    }
