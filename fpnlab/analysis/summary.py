"""A study's trials condensed into means, intervals, paired differences and plain sentences.

The summary is a dict of JSON values, so that whoever shows it needs nothing but the file.
Every metric is in points (percent); a number that cannot be given is ``None``.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, get_args

from fpnlab.analysis.contrasts import (
    Contrast,
    Failed,
    failure_note,
    failures,
    least_deviation,
    resolution,
    row_contrast,
)
from fpnlab.analysis.findings import write_findings
from fpnlab.analysis.tuning import tuning_rows
from fpnlab.analysis.verdict import Evidence, judge_claims
from fpnlab.config.claims import Cell, Evaluation, claim_hash, read_claims
from fpnlab.stats.intervals import Interval, paired_difference, t_interval

EVALUATIONS = get_args(Evaluation)
LEVEL = 0.95

Values = dict[int, float]
"""Points by seed."""


def summarize(
    study: Mapping[str, Any],
    results: Iterable[Mapping[str, Any]],
    tuning: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Returns the summary of a study, finished or not, as JSON values.

    Its parts, each row of which has ``mean``, ``low``, ``high``, ``n`` (seeds) and ``values``
    (by seed), in points, with 95 % Student-t intervals over seeds:

    * ``rows``: by metric, evaluation, arm and axis value.
    * ``differences``: each later arm minus the first, paired by seed.
    * ``changes``: an arm at the smallest axis value minus the same arm at the largest; none of an
      arm to which the axis does not apply, which cannot change.
    * ``change_differences``: the change of each later arm minus that of the first.
    * ``gains``: precise or batch statistics minus the running ones, where the two differ.

    Rows of the last four kinds have a ``verdict`` about zero (``above``, ``below``, ``undecided``
    or ``unmeasured``), and say in ``failures`` what failed trials keep from being decided.

    Besides: ``best`` and ``worst`` (rows of the study's metric), ``speed`` (examples a second),
    ``left_out`` (trials without a measurement, and why), ``counts`` (trials by status),
    ``tuning`` (by arm and axis value: ``chosen``, and ``tried`` with its points), ``verdicts``
    (see `judge_results`) with ``holm_over`` (the family of their tests), and ``findings``
    (sentences).

    The result of an arm to which the axis does not apply has no axis value (``None``), and counts
    at every one.

    Only trials whose status is ``done`` are measured. A diverged or failed one is left out of means
    and named in ``left_out``: counted as zero it would swamp an interval of three seeds. In
    comparisons it is worse than any number, so that none is decided for having left it out.

    Args:
        study: The content of ``study.json``.
        results: The content of each ``result.json`` there is.
        tuning: The same of the trials that tune, which are no results.
    """
    results = list(results)
    arms, axis_values = list(study["arms"]), list(study["axis_values"])
    done = _done(results, axis_values)
    fixed = {result["arm"] for result in results if result["axis_value"] is None}
    values = _collect(done, arms, axis_values)
    metric = study["metric"]
    compare = _Comparison(_failed(results, axis_values), _test_images(study), _axis_label(study))
    changes = _changes(values, axis_values, compare)
    rows = [
        _row(t_interval(v.values(), LEVEL, compare.least_deviation({cell: 1.0})), v, **vars(cell))
        for cell, v in values.items()
    ]
    ranked = sorted(
        (
            row
            for row in rows
            if (row["metric"], row["evaluation"]) == (metric, EVALUATIONS[0])
            and row["mean"] is not None
        ),
        key=lambda row: row["mean"],
    )
    everywhere = lambda row: row | ({"axis_value": None} if row["arm"] in fixed else {})
    summary = {
        "name": study["name"],
        "metric": metric,
        "level": LEVEL,
        "axis": study["axis"],
        "axis_label": _axis_label(study),
        "axis_values": axis_values,
        "arms": arms,
        "evaluations": list(EVALUATIONS),
        "counts": _counts(study, results),
        "left_out": _left_out(results),
        "rows": rows,
        "differences": _differences(values, arms, compare),
        "changes": [row for row in changes if row["arm"] not in fixed],
        "change_differences": _change_differences(changes, arms, compare),
        "gains": _gains(values, compare),
        "best": everywhere(ranked[-1]) if ranked else None,
        "worst": everywhere(ranked[0]) if ranked else None,
        "speed": _speed(done, arms, axis_values),
        "tuning": tuning_rows(metric, tuning),
        "tuned": study.get("tune"),
        "verdicts": judge_results(study, results),
        "holm_over": study.get("holm_over", "claim"),
    }
    return {**summary, "findings": write_findings(summary)}


def judge_results(
    study: Mapping[str, Any], results: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns the verdict on each claim of a study, finished or not, as JSON values.

    Each is a `verdict.Verdict` with the claim's ``statement`` and ``hash``. A rule is undecided
    until all trials that it needs have ended. One that diverged or failed has ended, and counts as
    worse than any number (see `fpnlab.analysis.contrasts`).

    Args:
        study: The content of ``study.json``, or of it what `plan.description` gives.
        results: The content of each ``result.json`` there is.
    """
    results, claims = list(results), read_claims(study.get("claims", []))
    arms, axis_values = list(study["arms"]), list(study["axis_values"])
    values = _collect(_done(results, axis_values), arms, axis_values)
    ended = {(result["arm"], result["axis_value"], result["seed"]) for result in results}
    unfinished = {
        (arm, value)
        for arm, value in itertools.product(arms, axis_values if claims else ())
        for seed in study["seeds"]
        if not ended & {(arm, value, seed), (arm, None, seed)}
    }
    metrics = {rule.metric for claim in claims for rule in claim.rules if rule.metric}
    evidence = Evidence(
        values,
        _axis_label(study),
        unfinished,
        _failed(results, axis_values),
        {metric: resolution(metric, _test_images(study)) for metric in metrics},
    )
    found = judge_claims(claims, evidence, study.get("holm_over", "claim"))
    verdicts = [
        {"statement": claim.statement, "hash": claim_hash(claim)} | dataclasses.asdict(verdict)
        for claim, verdict in zip(claims, found)
    ]
    return json.loads(json.dumps(verdicts))


def _test_images(study: Mapping[str, Any]) -> int | None:
    """The number of test images, where that is known."""
    return study.get("dataset", {}).get("test_images")


def _axis_label(study: Mapping[str, Any]) -> str:
    return study["axis"].rpartition(".")[2].replace("_", " ")


def _done(results: list[Mapping[str, Any]], axis_values: list[Any]) -> list[Mapping[str, Any]]:
    """The results of trials that are done; one without an axis value is there at each."""
    return [
        {**result, "axis_value": value}
        for result in results
        if result["status"] == "done"
        for value in (axis_values if result["axis_value"] is None else [result["axis_value"]])
    ]


def _failed(results: list[Mapping[str, Any]], axis_values: list[Any]) -> Failed:
    """The trials that ended without a value, by the places that they count at."""
    failed: dict[tuple[str, Any], list[tuple[str, Any, int]]] = {}
    for result in results:
        if result["status"] == "done":
            continue
        arm, value, seed = result["arm"], result["axis_value"], result["seed"]
        for place in axis_values if value is None else [value]:
            failed.setdefault((arm, place), []).append((arm, value, seed))
    return failed


def _collect(
    results: list[Mapping[str, Any]], arms: list[str], axis_values: list[Any]
) -> dict[Cell, Values]:
    """Points of each cell by seed, in the study's order; a missing metric (``None``) is nan."""
    values: dict[Cell, Values] = {}
    metrics: dict[str, None] = {}
    for result in results:
        for evaluation in EVALUATIONS:
            for metric, value in result["metrics"].get(evaluation, {}).items():
                metrics[metric] = None
                cell = Cell(metric, evaluation, result["axis_value"], result["arm"])
                points = math.nan if value is None else 100.0 * value
                values.setdefault(cell, {})[result["seed"]] = points
    order = itertools.product(metrics, EVALUATIONS, axis_values, arms)
    return {cell: values[cell] for cell in itertools.starmap(Cell, order) if cell in values}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _row(interval: Interval, values: Mapping[int, float], **keys: Any) -> dict[str, Any]:
    return {
        **keys,
        "mean": _number(interval.mean),
        "low": _number(interval.low),
        "high": _number(interval.high),
        "n": interval.n,
        "values": {str(seed): _number(values[seed]) for seed in sorted(values)},
    }


class _Comparison(NamedTuple):
    """What rows of comparisons need to know of a study besides its numbers."""

    failed: Failed
    test_images: int | None
    axis_label: str

    def least_deviation(self, contrast: Contrast) -> float:
        """The deviation that rounding gives a contrast, whose cells are of one metric."""
        return least_deviation(contrast, resolution(next(iter(contrast)).metric, self.test_images))

    def row(self, part: str, a: Values, b: Values, **keys: Any) -> dict[str, Any]:
        """The row of ``b - a`` with its verdict: does the interval leave zero on one side?

        A side that is favoured by leaving failed trials out is not decided.
        """
        contrast = row_contrast(part, keys)
        interval, by_seed = paired_difference(a, b, LEVEL, self.least_deviation(contrast))
        found = failures(contrast, self.failed)
        verdict = "undecided" if math.isfinite(interval.low) else "unmeasured"
        if interval.sign > 0 and not found.positive:
            verdict = "above"
        if interval.sign < 0 and not found.negative:
            verdict = "below"
        note = failure_note(found, self.axis_label)
        return _row(interval, by_seed, **keys, verdict=verdict, failures=note)


def _differences(
    values: dict[Cell, Values], arms: list[str], compare: _Comparison
) -> list[dict[str, Any]]:
    rows = []
    for reference in dict.fromkeys(replace(cell, arm=arms[0]) for cell in values):
        for arm in arms[1:]:
            a, b = values.get(reference, {}), values.get(replace(reference, arm=arm), {})
            keys = vars(reference) | {"arm": arm, "reference": arms[0]}
            rows.append(compare.row("differences", a, b, **keys))
    return rows


def _ends(axis_values: list[Any]) -> tuple[Any, Any] | None:
    """The smallest and the largest axis value; ``None`` where that means nothing."""
    numeric = all(isinstance(value, int | float) for value in axis_values)
    return (min(axis_values), max(axis_values)) if numeric and len(axis_values) > 1 else None


def _changes(
    values: dict[Cell, Values], axis_values: list[Any], compare: _Comparison
) -> list[dict[str, Any]]:
    if (ends := _ends(axis_values)) is None:
        return []
    rows = []
    for cell in dict.fromkeys(replace(cell, axis_value=ends[1]) for cell in values):
        large, small = values.get(cell, {}), values.get(replace(cell, axis_value=ends[0]), {})
        keys = {"metric": cell.metric, "evaluation": cell.evaluation, "arm": cell.arm}
        rows.append(compare.row("changes", large, small, **keys, start=ends[1], end=ends[0]))
    return rows


def _change_differences(
    changes: list[dict[str, Any]], arms: list[str], compare: _Comparison
) -> list[dict[str, Any]]:
    by_arm: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in changes:
        by_arm.setdefault((row["metric"], row["evaluation"]), {})[row["arm"]] = row
    rows = []
    for (metric, evaluation), change in by_arm.items():
        for arm in arms[1:]:
            a, b = (change[name]["values"] if name in change else {} for name in (arms[0], arm))
            keys = {"metric": metric, "evaluation": evaluation, "arm": arm, "reference": arms[0]}
            ends = {"start": changes[0]["start"], "end": changes[0]["end"]}
            both = _by_seed(a), _by_seed(b)
            rows.append(compare.row("change_differences", *both, **keys, **ends))
    return rows


def _by_seed(values: Mapping[str, float]) -> Values:
    return {int(seed): value for seed, value in values.items()}


def _gains(values: dict[Cell, Values], compare: _Comparison) -> list[dict[str, Any]]:
    """Other statistics minus the running ones, for arms where any of the two differ."""
    pairs = [
        (cell, values[replace(cell, evaluation=EVALUATIONS[0])], other)
        for cell, other in values.items()
        if cell.evaluation != EVALUATIONS[0] and replace(cell, evaluation=EVALUATIONS[0]) in values
    ]
    differing = {
        cell.arm
        for cell, running, other in pairs
        if any(abs(d) > 1e-9 for d in paired_difference(running, other).by_seed.values())
    }
    return [
        compare.row("gains", running, other, **vars(cell))
        for cell, running, other in pairs
        if cell.arm in differing
    ]


def _counts(study: Mapping[str, Any], results: list[Mapping[str, Any]]) -> dict[str, int]:
    """Trials by status; ``planned`` and ``missing`` (without a result yet) among them."""
    statuses = [result["status"] for result in results]
    counts = {status: statuses.count(status) for status in sorted({"done", *statuses})}
    return {"planned": study["trials"], "missing": study["trials"] - len(results), **counts}


def _left_out(results: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: result.get(key) for key in ("trial", "arm", "axis_value", "seed", "status", "error")}
        for result in results
        if result["status"] != "done"
    ]


def _speed(
    results: list[Mapping[str, Any]], arms: list[str], axis_values: list[Any]
) -> list[dict[str, Any]]:
    """Examples a second of the whole trial, by arm and axis value."""
    speeds: dict[tuple[str, Any], Values] = {
        (arm, axis_value): {} for arm in arms for axis_value in axis_values
    }
    for result in results:
        if result["seconds"]:
            place = result["arm"], result["axis_value"]
            speeds[place][result["seed"]] = result["examples"] / result["seconds"]
    return [
        _row(t_interval(own.values(), LEVEL), own, arm=arm, axis_value=axis_value)
        for (arm, axis_value), own in speeds.items()
    ]
