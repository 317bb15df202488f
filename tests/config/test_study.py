"""The grid of a study: axes, ranges, arms outside an axis, order and names of trials, claims."""

import itertools
import json
import math

import pytest

from fpnlab.config.claims import (
    Claim,
    Difference,
    DifferenceInDifferences,
    Equivalence,
    claim_hash,
    read_claims,
)
from fpnlab.config.study import Axis, Range, Study, Tune, applied, held_out, planned, study_file

BATCH = Axis(field="train.batch_size", values=(2, 4))
RATE = Axis(field="train.learning_rate", values=(0.1, 0.3))
ARMS = {"BN": {}, "LN": {"model.norm": "ln"}}
DATA = {"kind": "digits", "split": {"validation": 0.1}}
BASE = {
    "data": DATA,
    "train": {"batch_size": 8, "learning_rate": 0.012, "rule": "sqrt", "warmup": 100},
}


def grid(*axes, **fields):
    return Study(
        axes=axes, arms=fields.pop("arms", ARMS), seeds=fields.pop("seeds", (0,)), **fields
    )


def places(study):
    return [(place.arm, place.axis_value) for place in study.places()]


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ({"low": 0.0, "high": 1.0, "count": 3}, (0.0, 0.5, 1.0)),
        ({"low": 1e-3, "high": 1e-1, "count": 3, "scale": "log"}, (0.001, 0.01, 0.1)),
        ({"low": 2, "high": 32, "count": 5, "scale": "log"}, (2, 4, 8, 16, 32)),
        ({"low": 2, "high": 8, "count": 4}, (2, 4, 6, 8)),
        ({"low": 2, "high": 8.0, "count": 4}, (2.0, 4.0, 6.0, 8.0)),
    ],
)
def test_a_range_has_evenly_spaced_values_of_the_type_of_its_ends(given, values):
    found = Range(**given).values
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


def test_neighboring_values_of_a_logarithmic_range_have_the_same_ratio():
    values = Range(low=1e-4, high=1.0, count=7, scale="log").values
    ratios = [b / a for a, b in itertools.pairwise(values)]
    assert all(math.isclose(ratio, 10 ** (4 / 6), rel_tol=1e-4) for ratio in ratios)


def test_an_arm_may_set_the_field_of_an_axis_for_other_arms():
    only = Axis(field="train.batch_size", values=(2,), only=("BN",))
    study = grid(only, arms={"BN": {}, "LN": {"train.batch_size": 3}})
    assert [place.settings for place in study.places()] == [
        {"train.batch_size": 2},
        {"train.batch_size": 3},
    ]


def test_fields_change_together_and_the_first_names_the_axis():
    both = Axis(fields=("train.batch_size", "train.learning_rate"), values=((2, 0.1), (4, 0.2)))
    study = grid(both, arms={"BN": {}})
    assert study.axis_values == [2, 4]
    assert [place.settings for place in study.places()] == [
        {"train.batch_size": 2, "train.learning_rate": 0.1},
        {"train.batch_size": 4, "train.learning_rate": 0.2},
    ]


def test_axes_after_the_first_are_multiplied_into_the_arms():
    study = grid(BATCH, RATE, Axis(field="train.clip", values=("none", 1), only=("LN",)))
    assert study.report_arms == [
        "BN learning_rate=0.1",
        "BN learning_rate=0.3",
        "LN learning_rate=0.1 clip=none",
        "LN learning_rate=0.1 clip=1",
        "LN learning_rate=0.3 clip=none",
        "LN learning_rate=0.3 clip=1",
    ]
    assert places(study) == [(arm, value) for value in (2, 4) for arm in study.report_arms]


def test_an_arm_outside_an_axis_is_run_once_a_seed_and_keeps_the_field():
    norm_batch = Axis(field="train.norm_batch", values=(2, 4), only=("BN",))
    study = grid(norm_batch, seeds=(0, 1))
    assert places(study) == [("BN", 2), ("LN", None), ("BN", 4)]
    plan = planned(study, BASE)
    assert [point.name for point in plan] == [
        "bn-norm_batch-2-seed-0",
        "ln-seed-0",
        "bn-norm_batch-4-seed-0",
        "bn-norm_batch-2-seed-1",
        "ln-seed-1",
        "bn-norm_batch-4-seed-1",
    ]
    assert plan[1].settings == {"model.norm": "ln", "seed": 0}
    second = grid(BATCH, norm_batch)
    assert places(second) == [
        (arm, value) for value in (2, 4) for arm in ("BN norm_batch=2", "BN norm_batch=4", "LN")
    ]


def test_labels_of_lists_and_tables_are_json_text():
    axis = Axis(field="model.backbone.widths", values=([4, 8], {"b": 1, "a": None}, None, True))
    assert [label for label, _ in axis.points] == ["[4, 8]", '{"a": null, "b": 1}', "none", True]


def test_the_name_of_an_axis_over_an_entry_of_a_list_has_the_name_of_the_list():
    assert Axis(field="model.backbone.widths.1", values=(8,)).name == "widths.1"
    assert Axis(field="seed_of", values=(8,)).name == "seed_of"


def test_tuning_trials_come_first_each_arm_and_value_with_all_factors():
    study = grid(BATCH, seeds=(0, 1), tune=Tune(factors=(0.5, 2.0), seed=7))
    plan = planned(study, BASE)
    tuning = [point for point in plan if point.split == "validation"]
    assert plan[: len(tuning)] == tuning
    assert [(p.arm, p.axis_value, p.seed, p.tuned) for p in tuning] == [
        (arm, value, 7, {"train.learning_rate": rate})
        for value in (2, 4)
        for arm in ("BN", "LN")
        for rate in (0.006, 0.024)
    ]
    assert tuning[0].settings["train.learning_rate"] == 0.006
    counted = plan[len(tuning) :]
    assert all(point.tuned is None for point in counted)
    # All training images are trained on where the test images are measured.
    assert all(point.settings["data.split.validation"] == 0.0 for point in counted)
    assert all("data.split.validation" not in point.settings for point in tuning)


def test_tuning_starts_from_what_the_arm_sets_and_keeps_whole_numbers_whole():
    arms = {"BN": {}, "LN": {"train": {"learning_rate": 1.0, "batch_size": 9}}}
    study = grid(Axis(field="a", values=(1,)), arms=arms, tune=Tune(factors=(0.5,)))
    rates = [p.tuned["train.learning_rate"] for p in planned(study, BASE) if p.tuned]
    assert rates == [0.006, 0.5]
    whole = grid(BATCH, tune=Tune(field="train.warmup", factors=(0.333, 3.0)))
    assert [p.tuned["train.warmup"] for p in planned(whole, BASE)[:2]] == [33, 300]


@pytest.mark.parametrize("field", ["train.rule", "train", "train.nothing", "nothing.at.all"])
def test_tuning_a_field_that_is_not_a_number_is_an_error(field):
    with pytest.raises(ValueError, match=f"tune.field: is '{field}', whose value is .*; it must"):
        planned(grid(BATCH, tune=Tune(field=field)), BASE)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"validation": 0.2, "split": "x"}, ("data.validation", 0.2)),
        ({"split": {"validation": 0.0}}, ("data.split.validation", 0.0)),
        ({"split": None}, (None, 0.0)),
        ({}, (None, 0.0)),
    ],
)
def test_held_out_finds_the_validation_share_in_the_data_or_their_split(data, found):
    assert held_out({"data": data}) == found


def test_applied_sets_dotted_fields_and_changes_nothing_else():
    before = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": 3}
    assert applied(before, {"a.b": 5, "a.c.1.d": 6, "f.g": 7}) == {
        "a": {"b": 5, "c": [1, {"d": 6}]},
        "e": 3,
        "f": {"g": 7},
    }
    assert before == {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": 3}
    assert applied({"a": [1]}, {"a.3": 2}) == {"a": {"3": 2}}
    assert applied({"a": 1}, {"a.b": 2}) == {"a": {"b": 2}}


ONLY = Axis(field="train.norm_batch", values=(2, 4, "none"), only=("BN",))
PAIR = {"arm": "BN", "baseline": "LN"}


def claim(*rules, **fields):
    return Claim(**{"statement": "So it is.", "rules": rules} | fields)


def change(**fields):
    return DifferenceInDifferences(**PAIR | {"start": 4, "end": 2, "side": "below"} | fields)


def difference(**fields):
    return Difference(**PAIR | {"axis_values": (2,), "side": "below"} | fields)


def equivalence(**fields):
    return Equivalence(**PAIR | {"axis_values": (2,), "margin": 1.0} | fields)


@pytest.mark.parametrize(
    ("rule", "arms"),
    [
        (equivalence(arm="LN", baseline_value=4), "LN"),
        (change(arm="GN"), "LN and GN"),
        (difference(arm="GN", axis_values=(2, 4)), "LN and GN"),
    ],
)
def test_a_rule_that_compares_trials_with_themselves_is_an_error(rule, arms):
    with pytest.raises(ValueError, match=f"compares the same trials .* does not apply to {arms};"):
        grid(ONLY, arms=ARMS | {"GN": {}}, claims=(claim(rule),))


def test_an_arm_without_the_axis_may_be_compared_at_every_value():
    rules = (
        change(),
        difference(axis_values=(2, 4, None)),
        equivalence(arm="BN", baseline="BN", axis_values=(2, 4), baseline_value="none"),
        difference(arm="GN"),
    )
    assert grid(ONLY, arms=ARMS | {"GN": {}}, claims=(claim(*rules),)).claims[0].rules == rules


def test_written_claims_have_a_metric_and_are_read_back():
    study = grid(BATCH, metric="AP50", claims=(claim(change(), difference(metric="AP")),))
    described = study_file(study, name="", trials=4).claims
    assert [rule["metric"] for rule in described[0]["rules"]] == ["AP50", "AP"]
    assert json.loads(json.dumps(described)) == described
    assert read_claims(described) == (claim(change(metric="AP50"), difference(metric="AP")),)


def test_every_field_of_a_claim_changes_its_hash():
    claims = [
        claim(change()),
        claim(change(), alpha=0.01),
        claim(change(), statement="So it may be."),
        claim(change(threshold=-1.0)),
        claim(change(evaluation="precise")),
        claim(change(), difference()),
    ]
    assert len({claim_hash(c) for c in claims}) == len(claims)
    assert claim_hash(claim(change())) == claim_hash(claims[0])
