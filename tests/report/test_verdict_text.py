"""Figures of verdicts: bands, intervals and seeds of each estimate."""

import dataclasses
import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from fpnlab.records.study_records import read_summary
from fpnlab.report.verdict_text import plot_verdict


@pytest.fixture
def verdicts(claiming_dir):
    return read_summary(claiming_dir / "summary.json").verdicts


@pytest.fixture
def drawn(monkeypatch):
    """Arguments of the calls that draw bands, intervals and dots, in order."""
    calls = {"barh": [], "plot": [], "scatter": []}
    for name, found in calls.items():
        original = getattr(Axes, name)

        def note(axes, *args, original=original, found=found, **fields):
            found.append((args, fields, axes.get_xlim()))
            return original(axes, *args, **fields)

        monkeypatch.setattr(Axes, name, note)
    return calls


def test_each_estimate_has_a_band_an_interval_and_dots_for_seeds(verdicts, drawn):
    for verdict in verdicts:
        plot_verdict(verdict, io.BytesIO())
    estimates = [e for v in verdicts for o in v.outcomes for e in o.estimates]
    assert len(estimates) == len(drawn["barh"]) == 4
    intervals = [args[0] for args, *_ in drawn["plot"] if args[-1] != "o"]
    assert intervals == [[e.low, e.high] for e in estimates]
    means = [args[0] for args, *_ in drawn["plot"] if args[-1] == "o"]
    assert means == [e.mean for e in estimates]
    assert [args[0] for args, *_ in drawn["scatter"]] == [
        list(e.by_seed.values()) for e in estimates
    ]


def test_the_band_is_the_claimed_range(verdicts, drawn):
    for verdict in verdicts:
        plot_verdict(verdict, io.BytesIO())
    bands = [
        (fields["left"], fields["left"] + args[1], frame) for args, fields, frame in drawn["barh"]
    ]
    (low, high, frame), above, *flat = bands
    np.testing.assert_allclose((low, high), (frame[0], 0.0))
    np.testing.assert_allclose(above[:2], (0.0, above[2][1]))
    for band in flat:
        np.testing.assert_allclose(band[:2], (-0.1, 0.1))


def test_limits_contain_seeds_and_margins_but_not_very_wide_intervals(verdicts, drawn):
    [outcome] = verdicts[1].outcomes
    wide = dataclasses.replace(outcome.estimates[0], low=-500.0, high=500.0)
    outcome = dataclasses.replace(outcome, estimates=(wide, *outcome.estimates[1:]))
    plot_verdict(dataclasses.replace(verdicts[1], outcomes=(outcome,)), io.BytesIO())
    low, high = drawn["barh"][0][2]
    seeds = [value for e in outcome.estimates for value in e.by_seed.values()]
    inside = [*seeds, -0.1, 0.1]
    assert low < min(inside)
    assert high > max(inside)
    assert high - low < 5 * (max(inside) - min(inside))
    rule = dataclasses.replace(outcome.rule, margin=700.0)
    outcome = dataclasses.replace(outcome, rule=rule)
    plot_verdict(dataclasses.replace(verdicts[1], outcomes=(outcome,)), io.BytesIO())
    low, high = drawn["barh"][-1][2]
    assert low < -700 < 700 < high


def test_an_unmeasured_estimate_has_a_band_alone(verdicts, drawn):
    nothing = {"mean": None, "low": None, "high": None, "by_seed": {}}
    outcomes = tuple(
        dataclasses.replace(
            outcome,
            estimates=tuple(dataclasses.replace(e, **nothing) for e in outcome.estimates),
        )
        for outcome in verdicts[0].outcomes
    )
    plot_verdict(dataclasses.replace(verdicts[0], outcomes=outcomes), file := io.BytesIO())
    assert len(drawn["barh"]) == 2
    assert drawn["plot"] == []
    with Image.open(file) as picture:
        assert picture.width >= 900
