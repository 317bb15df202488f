"""Bootstrap intervals of a finished study's comparisons, over seeds and test items.

Trials of classifiers store for each test image whether it is classified correctly (``items.npz``).
A comparison is a weighted sum of cells, such as arm minus baseline. The same sum over their items
is a number for each seed and item; `resampling.hierarchical_bootstrap` gives the interval of its
mean.

No verdict depends on these intervals, so that verdicts can be reproduced from ``table.csv``, which
has no items.
"""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np

from fpnlab.analysis.contrasts import Contrast, row_contrast, rule_contrasts
from fpnlab.analysis.findings import write_findings
from fpnlab.config.claims import Cell, Rule, read_claims
from fpnlab.records.run_records import Metrics, RunResult
from fpnlab.records.study_records import (
    BootstrapInterval,
    ClaimBootstrap,
    Estimate,
    StudyFile,
    Summary,
    SummaryRow,
    Verdict,
)
from fpnlab.stats.intervals import Interval
from fpnlab.stats.resampling import hierarchical_bootstrap

Items = dict[Cell, dict[int, np.ndarray]]
"""Correctness of each test item, by cell and seed."""

COMPARISONS = ("differences", "changes", "change_differences", "gains")
"""Fields of a summary with rows of comparisons."""
MISSING = "items.npz is missing"


def with_bootstrap(
    summary: Summary,
    study: StudyFile,
    results: Iterable[RunResult],
    run_folder: Callable[[str], pathlib.Path],
) -> Summary:
    """Returns the summary of a study with bootstrap intervals where trials have stored items.

    A comparison has a bootstrap interval only if all of its seeds have the same items in all of its
    cells, so that it estimates the same number as the t interval.

    Args:
      summary: The summary without bootstrap intervals.
      study: The plan, with the claims.
      results: The results of the main trials that have ended.
      run_folder: Maps the name of a trial to its folder.
    """
    contrasts = {
        part: [
            row_contrast(part, row) if _is_reported(summary, part, row) else {}
            for row in getattr(summary, part)
        ]
        for part in COMPARISONS
    }
    claimed = list(_claimed(summary, study))
    needed = {cell for part in contrasts.values() for contrast in part for cell in contrast}
    needed |= {cell for *_, contrast in claimed for cell in contrast}
    items, left_out = read_items(results, run_folder, needed)
    if not items and set(left_out.values()) <= {MISSING}:
        return summary
    parts: dict[str, list[SummaryRow]] = {
        part: [
            dataclasses.replace(row, bootstrap=_row_interval(row, contrast, items, summary.level))
            for row, contrast in zip(getattr(summary, part), own)
        ]
        for part, own in contrasts.items()
    }
    of_claims = [
        found for place in claimed if (found := _claim_interval(*place, items)) is not None
    ]
    whole = dataclasses.replace(
        summary,
        differences=parts["differences"],
        changes=parts["changes"],
        change_differences=parts["change_differences"],
        gains=parts["gains"],
        claim_bootstrap=of_claims,
        items_left_out=left_out,
    )
    return dataclasses.replace(whole, findings=write_findings(whole))


def read_items(
    results: Iterable[RunResult],
    run_folder: Callable[[str], pathlib.Path],
    needed: Collection[Cell],
) -> tuple[Items, dict[str, str]]:
    """Returns the items of the needed cells, and the reason for each trial without usable items.

    Args:
        results: Results of trials; those without the status ``done`` are ignored.
        run_folder: Maps the name of a trial to its folder.
        needed: The cells.
    """
    places = collections.defaultdict(list)
    for cell in needed:
        # A result without an axis value counts at every value of the axis.
        for axis_value in (cell.axis_value, None):
            places[cell.arm, axis_value].append(cell)
    items: Items = {}
    left_out = {}
    for result in results:
        cells = places.get((result.arm, result.axis_value))
        if cells is None or result.status != "done":
            continue
        path = run_folder(result.trial) / "items.npz"
        try:
            found = _read(path, cells, result.metrics)
        except FileNotFoundError:
            left_out[result.trial] = MISSING
        except Exception as error:  # A damaged archive raises errors of many kinds.
            left_out[result.trial] = f"items.npz cannot be used ({error})"
        else:
            for cell, right in found.items():
                items.setdefault(cell, {})[result.seed] = right
    return items, left_out


def _read(path: pathlib.Path, cells: Sequence[Cell], metrics: Metrics) -> dict[Cell, np.ndarray]:
    """Returns the items of one trial by cell; metrics without items, such as AP, have none."""
    names = {cell: f"{cell.metric}_{cell.evaluation}" for cell in cells}
    if path.exists() and not path.is_file():  # Reading a pipe would never end.
        raise ValueError("not a regular file")
    # Opened here, because NumPy does not close the file of a damaged archive.
    with path.open("rb") as file, np.load(file) as archive:
        arrays = {name: archive[name] for name in set(names.values()) & set(archive.files)}
    for cell, name in names.items():
        if name in arrays and not math.isclose(
            arrays[name].mean(), metrics[cell.evaluation][cell.metric or ""] or 0.0, abs_tol=1e-9
        ):
            raise ValueError(f"the mean of {name} differs from the {cell.metric} in result.json")
    return {cell: arrays[name] for cell, name in names.items() if name in arrays}


def _is_reported(summary: Summary, part: str, row: SummaryRow) -> bool:
    """Returns whether findings report a row, and it has an interval."""
    main = part == "gains" or row.evaluation == summary.evaluations[0]
    return main and row.metric == summary.metric and row.low is not None


def _claimed(
    summary: Summary, study: StudyFile
) -> Iterator[tuple[int, int, Rule, Estimate, Contrast]]:
    """Yields index of claim and rule, rule, estimate and contrast for each estimate of a claim."""
    for i, (claim, verdict) in enumerate(zip(read_claims(study.claims), summary.verdicts)):
        for j, (rule, outcome) in enumerate(zip(claim.rules, verdict.outcomes)):
            for estimate, contrast in zip(outcome.estimates, rule_contrasts(rule)):
                if estimate.low is not None:
                    yield i, j, rule, estimate, contrast


def _bootstrap(
    contrast: Contrast, items: Items, seeds: Sequence[int], level: float
) -> tuple[Interval, int] | None:
    """Returns the interval in points and the number of items; None if items of seeds differ."""
    having = [items.get(cell, {}) for cell in contrast]
    found = [[own[seed] for own in having if seed in own] for seed in seeds]
    complete = all(len(own) == len(contrast) for own in found)
    if not complete or len({right.shape for own in found for right in own}) != 1:
        return None
    weights = 100.0 * np.array(list(contrast.values()))
    differences = np.stack([weights @ np.stack(own) for own in found])
    return hierarchical_bootstrap(differences, level=level), differences.shape[1]


def _row_interval(
    row: SummaryRow, contrast: Contrast, items: Items, level: float
) -> BootstrapInterval | None:
    seeds = [seed for seed, value in row.values.items() if value is not None]
    if not contrast or (found := _bootstrap(contrast, items, seeds, level)) is None:
        return None
    interval, size = found
    verdict: Verdict = "undecided"
    if interval.sign:
        verdict = "above" if interval.sign > 0 else "below"
    return BootstrapInterval(low=interval.low, high=interval.high, items=size, verdict=verdict)


def _claim_interval(
    claim: int, number: int, rule: Rule, estimate: Estimate, contrast: Contrast, items: Items
) -> ClaimBootstrap | None:
    level = estimate.level
    if (found := _bootstrap(contrast, items, list(estimate.by_seed), level)) is None:
        return None
    (_, low, high, n), size = found
    assert estimate.low is not None
    assert estimate.high is not None
    ours, theirs = _lies(rule, low, high), _lies(rule, estimate.low, estimate.high)
    interval = f"{low:.3g} to {high:.3g} ({size} test items)"
    where = f"also {ours}" if ours == theirs else f"{ours}, but the t interval {theirs}"
    return ClaimBootstrap(
        claim=claim,
        rule=number,
        place=estimate.place,
        low=low,
        high=high,
        level=level,
        n=n,
        items=size,
        agrees=ours == theirs,
        sentence=f"{100 * level:g} % bootstrap interval {estimate.place}: {interval}. It {where}.",
    )


def _lies(rule: Rule, low: float, high: float) -> str:
    """Returns the position of an interval relative to a rule's margin or threshold."""
    if rule.kind == "equivalence":
        if -rule.margin < low and high < rule.margin:
            return f"lies within {rule.margin:g} of zero"
        beyond = low > rule.margin or high < -rule.margin
        return f"{'lies outside' if beyond else 'crosses'} the margin of {rule.margin:g}"
    if low > rule.threshold or high < rule.threshold:
        return f"lies {'above' if low > rule.threshold else 'below'} {rule.threshold:g}"
    return f"includes {rule.threshold:g}"
