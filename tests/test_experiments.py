"""Experiments: each has its config, and the verdicts in the docs follow from their tables."""

import csv
import json
import pathlib

import pydantic
import pytest

from fpnlab.analysis.table_results import judge_table
from fpnlab.config.load import load_config
from fpnlab.config.validate import validate
from fpnlab.records.study_records import ClaimResult

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = {path.stem for path in (ROOT / "configs").glob("claim_*.toml")}
CLAIMS = sorted((ROOT / "experiments").glob("claim_*.py"))
SCRIPTS = [path for path in CLAIMS if path.stem in CONFIGS]
RESULTS = sorted((ROOT / "docs" / "results").glob("claim_*.json"))


def test_there_are_experiments_and_results():
    assert {path.stem for path in SCRIPTS} == CONFIGS
    assert RESULTS


@pytest.mark.parametrize("script", CLAIMS, ids=lambda path: path.stem)
def test_an_experiment_is_short(script):
    assert len(script.read_text().splitlines()) <= 60


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_experiment_of_a_study_runs_the_config_of_its_name(script):
    text = script.read_text()
    assert f'publish("{script.stem}")' in text
    assert load_config(ROOT / "configs" / f"{script.stem}.toml").study.claims


@pytest.mark.parametrize("result", RESULTS, ids=lambda path: path.stem)
def test_a_published_verdict_follows_from_its_table_by_the_rules_of_its_config(result):
    kept = json.loads(result.read_text())
    experiment = load_config(ROOT / "configs" / f"{result.stem}.toml")
    # Fields that are newer than the result have defaults that mean what was done then.
    assert validate(kept["study"]) == experiment
    with result.with_suffix(".csv").open() as file:
        found = judge_table(experiment.study, csv.DictReader(file))
    assert found == pydantic.TypeAdapter(list[ClaimResult]).validate_python(kept["verdicts"])
