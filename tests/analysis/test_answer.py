"""The answer of a study: its sentences, the comparisons of all pairs of arms, outlying seeds."""

import collections
import itertools
import math
import re
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fpnlab.analysis.answer import MOST_ARMS, arm_pairs
from fpnlab.analysis.decisions import MOST_CLAUSES
from fpnlab.analysis.summary import summarize
from fpnlab.records.study_records import read_summary, write_record

from .cases import plan_of, results_of

SPREAD = (0.0, 0.5, -0.5)
"""Deviations of three seeds from their mean."""


def study(cells, arms=("BN", "LN"), lost=(), metric="AP", planned=None):
    """Returns plan and results from the points of the seeds by arm and axis value."""
    rows = [
        {
            "trial": f"{arm}-{value}-{seed}",
            "arm": arm,
            "axis_value": value,
            "seed": seed,
            "status": "diverged" if (arm, value, seed) in lost else "done",
            "metrics": {"running": {metric: number / 100}},
        }
        for (arm, value), points in cells.items()
        for seed, number in enumerate(points)
    ]
    values = list(dict.fromkeys(value for _, value in cells if value is not None))
    plan = plan_of(
        {
            "name": "study",
            "trials": planned or len(rows),
            "arms": list(arms),
            "axis": "train.batch_size",
            "axis_values": values,
            "metric": metric,
        }
    )
    return plan, results_of(rows)


def answer_of(cells, **options):
    return summarize(*study(cells, **options)).answer


def apart(differences, spread=SPREAD):
    """Cells of BN, and of LN with these mean differences to BN by axis value."""
    cells, turned = {}, collections.deque(spread)
    for i, (value, difference) in enumerate(differences.items()):
        base = [40.0 + seed + i for seed in range(len(spread))]
        cells["BN", value] = base
        cells["LN", value] = [b + difference + own for b, own in zip(base, turned)]
        turned.rotate(1)
    return cells


def of_arms(levels, value=2):
    """Cells of arms at one axis value with these levels, and deviations that differ by arm."""
    turned = collections.deque((0.0, 0.2, -0.2, 0.1, -0.1))
    cells = {}
    for arm, level in levels.items():
        cells[arm, value] = [level + own for own in turned]
        turned.rotate(1)
    return cells


def row_of(answer, arm, reference, value):
    [row] = [
        row
        for row in answer.comparisons
        if (row.arm, row.reference, row.axis_value) == (arm, reference, value)
    ]
    return row


def test_decided_comparisons_of_two_arms_are_one_sentence_over_the_axis():
    cells = apart({2: 9.0, 4: 6.0, 8: 3.0, 16: 0.5, 32: -4.0})
    assert answer_of(cells).sentences[0] == (
        "LN is above BN at batch size 2 to 8 (by 3.0 to 9.0 AP) and below it at 32 (by 4.0 AP); "
        "the order is undecided at 16."
    )
    every = answer_of(apart(dict.fromkeys((2, 4, 8), 5.0)))
    assert every.sentences[0] == ("LN is above BN at every batch size from 2 to 8 (by 5.0 AP).")
    below = answer_of(apart({2: -3.0, 4: 0.1}))
    assert below.sentences[0] == (
        "LN is below BN at batch size 2 (by 3.0 AP); the order is undecided at 4."
    )


def test_values_that_are_no_numbers_have_no_range():
    cells = apart({"a": 5.0, "b": 5.0, "c": 5.0, "d": 0.1})
    answer = answer_of(cells, metric="accuracy")
    assert answer.sentences[0] == (
        "LN is above BN at batch size a, b and c (by 5.0 points of accuracy); the order is "
        "undecided at d."
    )


def test_the_bound_is_that_of_bonferroni_intervals_of_all_comparisons():
    means = {2: 0.8, 4: -0.3, 8: 0.5, 16: 0.2, 32: 0.3}
    answer = answer_of(apart(means))
    assert answer.sentences[0] == (
        "The order of BN and LN is undecided at every batch size from 2 to 32."
    )
    half = stats.t.ppf(1 - 0.05 / 5 / 2, 2) * 0.5 / math.sqrt(3)
    low, high = math.floor(10 * (-0.3 - half)) / 10, math.ceil(10 * (0.8 + half)) / 10
    assert answer.sentences[1] == (
        f"A difference of more than {max(-low, high):.1f} AP is not plausible at any batch size: "
        "simultaneous 95 % confidence intervals (Bonferroni) of LN minus BN lie within "
        f"{low:.1f} to {high:.1f}."
    )
    assert half > 2 * stats.t.ppf(0.975, 2) * 0.5 / math.sqrt(3)


def test_adjusted_decisions_follow_holm_and_are_rare_without_a_difference():
    rng, studies, within = np.random.default_rng(0), 200, 0
    for _ in range(studies):
        answer = answer_of({key: 40 + rng.normal(size=4) for key in apart({2: 0, 4: 0, 8: 0})})
        p = [stats.ttest_1samp(list(row.values.values()), 0).pvalue for row in answer.comparisons]
        assert answer.adjusted == holm_decided(p)
        within += answer.adjusted == 0
    assert within / studies > 0.92


def holm_decided(p):
    """The number of hypotheses that Holm's procedure rejects, step by step."""
    rejected = 0
    for i, value in enumerate(sorted(p)):
        if value >= 0.05 / (len(p) - i):
            break
        rejected += 1
    return rejected


def test_undecided_comparisons_beside_decided_ones_have_a_bound():
    answer = answer_of(apart({2: 9.0, 4: 0.2, 8: 0.1}))
    half = stats.t.ppf(1 - 0.05 / 3 / 2, 2) * 0.5 / math.sqrt(3)
    limit = math.ceil(10 * (0.2 + half)) / 10
    bound = f"a difference of more than {limit:.1f} AP is not plausible at batch size 4 and 8: "
    assert bound in answer.sentences[1]


def test_intervals_beyond_the_range_of_the_metric_bound_nothing():
    wide = (0.0, 30.0, -30.0)
    answer = answer_of(apart({2: 0.0, 4: 1.0}, spread=wide))
    assert answer.sentences[1].startswith("No difference can be ruled out by these seeds: ")
    cells = apart({2: 0.0, 4: 1.0}) | {
        key: value for key, value in apart({2: 0.0}, spread=wide).items() if key[0] == "LN"
    }
    assert "is not plausible at batch size 4:" in answer_of(cells).sentences[1]


def test_the_change_of_the_difference_is_reported_with_its_interval():
    answer = answer_of(apart({2: 9.0, 4: 6.0, 32: 1.5}))
    assert answer.sentences[1].startswith(
        "From batch size 32 to 2, the difference LN minus BN increases (change 7.5 AP, 95 % "
    )
    steady = answer_of(apart({2: 9.0, 32: 9.0}, spread=(0.0, 0.1, 0.5)))
    assert "the change of the difference LN minus BN is undecided (0.0 AP" in steady.sentences[1]


def test_a_decided_change_is_reported_where_no_comparison_is_decided():
    answer = answer_of(apart({2: 1.0, 4: 0.0, 8: 0.1, 32: -1.0}))
    assert answer.sentences[0].startswith("The order of BN and LN is undecided at every")
    assert answer.sentences[1].startswith("From batch size 32 to 2, the difference LN minus BN inc")
    assert "; a difference of more than" in answer.sentences[1]


def test_arms_other_than_the_baseline_are_compared_by_the_paired_t_test():
    rng = np.random.default_rng(1)
    arms = ("BN", "LN", "GN")
    cells = {(arm, value): 40 + rng.normal(size=4) for arm in arms for value in (2, 4)}
    answer = answer_of(cells, arms=arms)
    assert len(answer.comparisons) == 6
    for (reference, arm), value in itertools.product(arm_pairs(arms), (2, 4)):
        row = row_of(answer, arm, reference, value)
        test = stats.ttest_rel(cells[arm, value], cells[reference, value])
        interval = test.confidence_interval(0.95)
        np.testing.assert_allclose((row.low, row.high), (interval.low, interval.high))


def test_an_arm_above_all_others_comes_first():
    answer = answer_of(
        of_arms({"BN": 30, "LN": 40, "GN": 39.9, "IN": 50}), arms="BN LN GN IN".split()
    )
    assert answer.sentences[0] == (
        "5 of 6 comparisons are decided, where about 0.3 are expected by chance: IN is above all "
        "other arms at batch size 2 (by 10.0 to 20.0 AP); LN and GN are above BN at batch size 2 "
        "(by 9.9 to 10.0 AP)."
    )


def test_many_arms_are_compared_with_the_baseline_only():
    arms = ["BN", *(f"arm {i}" for i in range(MOST_ARMS))]
    assert len(arm_pairs(arms[:-1])) == math.comb(MOST_ARMS, 2)
    answer = answer_of(of_arms({arm: 40 + 5 * i for i, arm in enumerate(arms)}), arms=arms)
    assert [(row.arm, row.reference) for row in answer.comparisons] == [
        (arm, "BN") for arm in arms[1:]
    ]
    assert answer.sentences[0].startswith("6 of 6 comparisons with BN are decided")


def test_nothing_decided_among_several_arms_is_one_sentence():
    answer = answer_of(of_arms({"BN": 40, "LN": 40, "GN": 40}), arms=("BN", "LN", "GN"))
    assert answer.sentences[0] == "None of the 3 comparisons is decided at batch size 2."
    assert re.search(
        r"^A difference of more than \d\.\d AP is not plausible at batch size 2 \(sim",
        answer.sentences[1],
    )


def test_a_single_arm_is_answered_by_its_change():
    cells = {key: value for key, value in apart({2: 0, 32: 0}).items() if key[0] == "BN"}
    answer = answer_of(cells, arms=("BN",))
    assert answer.comparisons == []
    assert answer.sentences[0].startswith("From batch size 32 to 2, BN decreases (change -1.0 AP")


def test_arms_without_the_axis_are_compared_once():
    cells = apart({2: 0.0, 4: 0.0}) | {("GN", None): [45.0, 46, 47], ("IN", None): [30.0, 31.3, 32]}
    del cells["LN", 2], cells["LN", 4]
    answer = answer_of(cells, arms=("BN", "GN", "IN"))
    assert len(answer.comparisons) == 5
    row = row_of(answer, "IN", "GN", None)
    assert row.verdict == "below"
    assert "GN is above IN (by 14.9 AP)" in answer.sentences[0]


def test_a_study_without_results_has_one_sentence():
    plan, _ = study(apart({2: 0.0}))
    assert summarize(plan, []).answer.sentences == ["No trial is done yet."]


def test_an_unfinished_study_names_what_is_not_measured():
    cells = apart({2: 5.0, 4: 5.0})
    cells["LN", 4] = cells["LN", 4][:1]
    assert answer_of(cells, planned=12).sentences == [
        "LN is above BN at batch size 2 (by 5.0 AP); the order is not measured at 4.",
        "2 of 12 trials have not ended, and the answer may change with them.",
    ]


def test_failed_trials_are_the_caveat_and_bound_nothing():
    cells = apart({2: 5.0, 4: 0.2, 8: 0.1}, spread=(*SPREAD, 0.1))
    answer = answer_of(cells, lost=[("LN", 2, 3), ("BN", 4, 3)])
    assert answer.sentences[0] == (
        "The order of BN and LN is undecided at every batch size from 2 to 8."
    )
    assert "is not plausible at batch size 8:" in answer.sentences[1]
    assert answer.sentences[2] == (
        "2 trials diverged (LN at batch size 2, 1 seed and BN at batch size 4, 1 seed): excluded "
        "from means, which favors their arms, so that no comparison there is decided in their "
        "favor."
    )


def test_few_seeds_are_the_caveat_until_all_is_decided():
    undecided, decided = answer_of(apart({2: 0.1, 4: 5.0})), answer_of(apart({2: 5.0, 4: 5.0}))
    factor = stats.t.ppf(0.975, 2)
    assert undecided.sentences[-1].startswith(
        f"With 3 seeds, a confidence interval is ± {factor:.1f} "
    )
    assert decided.sentences[-1] == (
        "The best mean, 47.0 AP (LN at batch size 4), is biased upward, because it is selected as "
        "the largest of 4."
    )
    one = answer_of({key: values[:1] for key, values in apart({2: 5.0}).items()})
    assert one.sentences == [
        "The order of BN and LN is not measured at batch size 2.",
        "With fewer than two seeds there is no confidence interval, and nothing is decided.",
    ]


CALM = dict.fromkeys((2, 4, 8, 16), 0.0)


def test_an_outlying_seed_that_hides_a_decision_is_named_with_both_values():
    cells = apart(CALM | {2: 6.0}, spread=(0.0, 0.1, -0.1, 0.05))
    assert answer_of(cells).outlying == []
    cells["LN", 2][3] -= 35.25
    answer = answer_of(cells)
    [found] = answer.outlying
    assert (found.arm, found.reference, found.axis_value, found.seed) == ("LN", "BN", 2, 3)
    np.testing.assert_allclose((found.value, found.mean_without), (-29.2, 6.0))
    np.testing.assert_allclose(found.mean, (3 * 6.0 - 29.2) / 4)
    assert answer.sentences[2] == found.sentence
    assert found.sentence == (
        "Seed 3 lies far from the others in LN minus BN at batch size 2 (-29.2 AP against 6.0 on "
        "average): with it, the difference is -2.8 (undecided); without it, 6.0 (above)."
    )


def test_an_outlying_seed_that_selects_the_best_cell_comes_first():
    cells = apart(CALM | {2: 6.0}, spread=(0.0, 0.1, -0.1, 0.05))
    cells["BN", 8][1] = 90.0
    answer = answer_of(cells)
    best, comparison = answer.outlying
    assert (best.arm, best.reference, best.axis_value, best.seed) == ("BN", None, 8, 1)
    assert (comparison.arm, comparison.axis_value, comparison.seed) == ("LN", 8, 1)
    assert answer.sentences[2] == best.sentence.removesuffix(".") + "; 1 more case below the table."
    assert "with it, this mean is the best" in best.sentence


def test_an_outlying_seed_without_effect_on_headlines_is_not_named():
    # Both arms of the seed are equally far off, and the cell is not the best one.
    cells = apart(CALM, spread=(0.0, 0.1, -0.1, 0.05))
    for arm in ("BN", "LN"):
        cells[arm, 2][3] -= 30.0
    assert answer_of(cells).outlying == []


def test_an_outlying_seed_that_changes_no_verdict_and_little_of_the_mean_is_not_named():
    cells = apart(CALM | {2: 50.0}, spread=(0.0, 0.1, -0.1, 0.05))
    cells["LN", 2][3] -= 10.0
    assert row_of(answer_of(cells), "LN", "BN", 2).verdict == "above"
    assert answer_of(cells).outlying == []
    cells["LN", 2][3] -= 90.0
    assert [found.seed for found in answer_of(cells).outlying] == [3]


def test_an_outlying_seed_of_a_cell_that_is_best_without_it_is_not_named():
    cells = apart(CALM | {2: 20.0}, spread=(0.0, 0.1, -0.1, 0.05))
    for arm in ("BN", "LN"):
        cells[arm, 2][3] += 30.0
    answer = answer_of(cells)
    assert row_of(answer, "LN", "BN", 2).verdict == "above"
    assert answer.outlying == []


def test_an_outlier_does_not_decide_against_failed_trials():
    cells = apart(CALM | {2: 6.0}, spread=(0.0, 0.1, -0.1, 0.05, 0.0))
    cells["LN", 2][3] -= 35.0
    [found] = answer_of(cells, lost=[("LN", 2, 4)]).outlying
    assert found.sentence.endswith("without it, 6.0 (undecided).")
    [found] = answer_of(cells, lost=[("BN", 2, 4)]).outlying
    assert found.sentence.endswith("without it, 6.0 (above).")


def test_the_written_answer_is_read_again(tmp_path):
    cells = apart(CALM | {2: 6.0}, spread=(0.0, 0.1, -0.1, 0.05))
    cells["LN", 2][3] -= 35.0
    summary = summarize(*study(cells))
    write_record(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path / "summary.json") == summary
    write_record(tmp_path / "summary.json", replace(summary, answer=None))
    assert read_summary(tmp_path / "summary.json").answer is None


def random_study(number, count, values):
    """Random cells with some large and some small differences."""
    rng = np.random.default_rng(number)
    arms = [f"A{i}" for i in range(count)]
    level = rng.choice([0.0, 0.0, 6.0, 12.0], size=(count, len(values)))
    noise = rng.normal(
        scale=rng.choice([0.3, 3.0], size=(1, len(values), 1)), size=(*level.shape, 3)
    )
    numbers = (40.0 + level[..., None] + noise).round(2)
    cells = {
        (arm, value): numbers[i, j].tolist()
        for i, arm in enumerate(arms)
        for j, value in enumerate(values)
    }
    return arms, cells


def numbers_of(answer):
    return {
        (row.arm, row.reference, row.axis_value): (row.mean, row.low, row.high, row.verdict)
        for row in answer.comparisons
    }


OPPOSITE = {"above": "below", "below": "above"}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_exchanging_two_arms_turns_their_differences(number, count):
    arms, cells = random_study(number, count, [2, 4, 8])
    order = [arms[1], arms[0], *arms[2:]]
    found, turned = (numbers_of(answer_of(cells, arms=given)) for given in (arms, order))
    for value in (2, 4, 8):
        mean, low, high, verdict = found.pop((arms[1], arms[0], value))
        opposite = turned.pop((arms[0], arms[1], value))
        np.testing.assert_allclose(opposite[:3], (-mean, -high, -low), atol=1e-9)
        assert opposite[3] == OPPOSITE.get(verdict, verdict)
    assert found == turned


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.permutations([2, 4, 8, 16]))
def test_permuted_axis_values_permute_the_comparisons_and_leave_the_sentences(number, count, order):
    arms, cells = random_study(number, count, [2, 4, 8, 16])
    moved = {(arm, value): cells[arm, value] for arm in arms for value in order}
    one, other = answer_of(cells, arms=arms), answer_of(moved, arms=arms)
    assert numbers_of(one) == numbers_of(other)
    by_pair = [row.axis_value for row in other.comparisons]
    assert by_pair == list(order) * len(arm_pairs(arms))
    assert one.sentences == other.sentences


def named_values(text, values):
    """Axis values in "at every batch size from 2 to 8", "at batch size 2, 8 to 32 and 64"."""
    if text.startswith("every"):
        return values
    found = []
    for part in re.split(r", | and ", text.removeprefix("batch size ")):
        low, _, high = part.partition(" to ")
        found += [v for v in values if int(low) <= v <= int(high or low)]
    return found


def named_cells(sentence, arms, values):
    """The decided comparisons that a sentence names: arm above, arm below, axis value."""
    if len(arms) == 2:
        sides = re.findall(r"(above|below) \w+ at (.*?) \(by", sentence)
        for side, text in sides:
            pair = (arms[1], arms[0]) if side == "above" else (arms[0], arms[1])
            yield from ((*pair, value) for value in named_values(text, values))
        return
    _, _, clauses = sentence.partition(": ")
    for above, below, text in re.findall(
        r"([A-Z\d, and]+?) (?:is|are) above (.*?) at (.*?) \(by", clauses
    ):
        winners = [arm for arm in arms if re.search(rf"\b{arm}\b", above)]
        losers = [arm for arm in arms if re.search(rf"\b{arm}\b", below)]
        if below == "all other arms":
            losers = [arm for arm in arms if arm not in winners]
        yield from itertools.product(winners, losers, named_values(text, values))


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 4),
    st.sampled_from([[2], [2, 8], [2, 4, 8], [2, 4, 8, 16, 32]]),
)
def test_each_decided_comparison_is_named_once(number, count, values):
    arms, cells = random_study(number, count, values)
    answer = answer_of(cells, arms=arms)
    decided = {
        (row.arm, row.reference, row.axis_value)
        if row.verdict == "above"
        else (row.reference, row.arm, row.axis_value)
        for row in answer.comparisons
        if row.verdict in ("above", "below")
    }
    sentence = answer.sentences[0]
    named = list(named_cells(sentence, arms, values))
    assert len(named) == len(set(named))
    assert set(named) <= decided
    rest = re.search(r"(\d+) more are in the table", sentence)
    assert len(named) + (int(rest[1]) if rest else 0) == len(decided)
    assert sentence.count(" above ") <= MOST_CLAUSES
    assert len(answer.sentences) <= 3
    assert not re.search(r"\bequal\b|same", " ".join(answer.sentences))
