"""The grid of a study: axes, ranges, what applies to whom, and the order and names of trials."""

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
def test_a_range_is_its_values(given, values):
    found = Range(**given).values
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


def test_neighbors_of_a_logarithmic_range_have_one_ratio():
    values = Range(low=1e-4, high=1.0, count=7, scale="log").values
    ratios = [b / a for a, b in itertools.pairwise(values)]
    assert all(math.isclose(ratio, 10 ** (4 / 6), rel_tol=1e-4) for ratio in ratios)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"low": 1, "high": 2, "count": 1}, "count is 1; it must be at least 2"),
        ({"low": 2, "high": 1, "count": 2}, "needs low < high"),
        ({"low": 0.0, "high": 1.0, "count": 2, "scale": "log"}, "it must be above 0"),
    ],
)
def test_a_range_that_is_none_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        Range(**given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"values": (1,)}, "give field or fields, one of the two"),
        ({"field": "a", "fields": ("b",), "values": (1,)}, "give field or fields"),
        ({"fields": (), "values": (1,)}, "give each field once"),
        ({"fields": ("a.b", "a.b"), "values": ((1, 2),)}, "give each field once"),
        ({"field": "seed", "values": (1,)}, "seeds by study.seeds"),
        ({"field": "a", "values": ()}, "values is empty"),
        ({"field": "a", "values": (2, 2)}, "values names one entry twice: 2, 2"),
        ({"fields": ("a", "b"), "values": ((1, 2), (1, 3))}, "names one entry twice: 1, 1"),
        ({"fields": ("a", "b"), "values": (1, 2)}, "has 1; each must be a list of 2, one value"),
        ({"fields": ("a", "b"), "values": ((1, 2), (3,))}, r"has \(3,\); each must be a list"),
        (
            {"field": "a", "values": Range(low=1, high=2, count=5)},
            "values names one entry twice: 1, 1, 2",
        ),
        (
            {"fields": ("a", "b"), "values": Range(low=1, high=2, count=2)},
            "a range is for one field",
        ),
    ],
)
def test_an_axis_that_cannot_be_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        Axis(**given)


@pytest.mark.parametrize(
    ("axes", "fields", "says"),
    [
        ((BATCH, BATCH), {}, "two axes set train.batch_size"),
        ((Axis(field="a", values=(1,), only=("GN",)),), {}, "only for GN, which is no arm"),
        ((BATCH,), {"arms": {"BN": {"train.batch_size": 2}}}, "arms.BN sets train.batch_size"),
        ((BATCH,), {"seeds": (1, 1)}, "seeds names one entry twice"),
        ((BATCH,), {"seeds": ()}, "seeds is empty"),
        ((BATCH,), {"tune": Tune(seed=0)}, "tune.seed is 0, one of the study's seeds"),
        ((BATCH, RATE), {"tune": Tune()}, "tune.field is train.learning_rate, which an axis sets"),
    ],
)
def test_a_study_that_contradicts_itself_is_refused(axes, fields, says):
    with pytest.raises(ValueError, match=says):
        grid(*axes, **fields)


@pytest.mark.parametrize("factors", [(), (1.0, 1.0), (0.0, 1.0), (-1.0,)])
def test_factors_that_try_nothing_or_one_thing_twice_are_refused(factors):
    with pytest.raises(ValueError, match="give one or more, above 0, each once"):
        Tune(factors=factors)


def test_an_arm_may_set_what_an_axis_sets_for_others():
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


def test_lists_and_tables_are_labeled_by_their_text():
    axis = Axis(field="model.backbone.widths", values=([4, 8], {"b": 1, "a": None}, None, True))
    assert [label for label, _ in axis.points] == ["[4, 8]", '{"a": null, "b": 1}', "none", True]


def test_a_place_in_a_list_is_named_with_the_list():
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
def test_what_is_no_number_cannot_be_tuned(field):
    with pytest.raises(ValueError, match=f"tune.field is {field}, which is .*; it must be"):
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
def test_the_share_that_data_hold_out_is_found_where_it_stands(data, found):
    assert held_out({"data": data}) == found


def test_a_dotted_field_is_set_and_nothing_else_is_touched():
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
    ("axes", "rule", "says"),
    [
        (
            (BATCH,),
            change(arm="BNN"),
            "claims.0.rules.0 names the arm 'BNN', which there is not; the nearest is 'BN'; "
            "all: BN, LN",
        ),
        ((BATCH,), difference(baseline="GN"), "the arm 'GN', which there is not"),
        (
            (BATCH,),
            change(start=32),
            "names the axis value 32, which there is not; these are known: 2, 4",
        ),
        ((BATCH,), equivalence(baseline_value=0), "names the axis value 0, which there is not"),
        ((BATCH,), difference(axis_values=(2, [2])), "names the axis value '.2.'"),
        (
            (BATCH,),
            difference(metric="AP_smal"),
            "names the metric 'AP_smal', which there is not; the nearest is 'AP_small'; all: AP, ",
        ),
        # Later axes make arms of their own.
        ((BATCH, RATE), change(), "names the arm 'LN', .*: BN learning_rate=0.1"),
    ],
)
def test_a_rule_about_what_the_study_does_not_have_is_refused(axes, rule, says):
    with pytest.raises(ValueError, match=says):
        grid(*axes, claims=(claim(rule),))


@pytest.mark.parametrize(
    ("rule", "arms"),
    [
        (equivalence(arm="LN", baseline_value=4), "LN"),
        (change(arm="GN"), "LN and GN"),
        (difference(arm="GN", axis_values=(2, 4)), "LN and GN"),
    ],
)
def test_a_rule_that_compares_trials_with_themselves_is_refused(rule, arms):
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


def test_claims_of_one_statement_are_refused():
    with pytest.raises(ValueError, match="two claims have one statement"):
        grid(BATCH, claims=(claim(change()), claim(difference())))


def test_a_described_claim_says_its_metric_and_is_read_back():
    study = grid(BATCH, metric="AP50", claims=(claim(change(), difference(metric="AP")),))
    described = study_file(study, name="", trials=4).claims
    assert [rule["metric"] for rule in described[0]["rules"]] == ["AP50", "AP"]
    assert json.loads(json.dumps(described)) == described
    assert read_claims(described) == (claim(change(metric="AP50"), difference(metric="AP")),)


def test_whatever_changes_a_claim_changes_its_hash():
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
