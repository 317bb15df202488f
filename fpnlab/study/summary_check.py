"""Comparison of ``summary.json`` with the summary that the results give."""

import dataclasses
import importlib.metadata
import json
import math
import pathlib
from collections.abc import Iterator, Mapping

from fpnlab.config.study import Point
from fpnlab.errors import RunFolderError
from fpnlab.records.json_files import json_line, read_json
from fpnlab.records.manifest import MANIFEST
from fpnlab.records.run_records import RunResult
from fpnlab.records.study_records import StudyFile, Summary, read_summary
from fpnlab.run.environment import code_commit
from fpnlab.run.integrity import RERUN, Verification, reason
from fpnlab.study.context import failed_result
from fpnlab.study.study_summary import study_summary

TOLERANCE = 1e-9
"""Largest relative or absolute difference of equal numbers, whose sums may differ in order."""
IDENTITIES = {
    "arm",
    "arms",
    "axis",
    "axis_value",
    "axis_values",
    "decision",
    "end",
    "evaluation",
    "evaluations",
    "kind",
    "metric",
    "reference",
    "start",
    "status",
    "trial",
    "verdict",
}
"""Fields whose text is a decision or says what a number is of; any other text is wording."""
MOST = 5
"""Largest number of differences that are reported."""


def check_summary(
    folder: pathlib.Path,
    plan: StudyFile,
    points: Mapping[str, Point],
    results: Mapping[str, RunResult],
    found: Verification,
) -> None:
    """Adds a problem for each number and decision of a summary that the results do not give.

    Another version of the package may word the same numbers differently, so that wording is
    compared only where this version wrote the summary.

    Args:
      folder: The study folder.
      plan: The plan.
      points: The trials of the study by name.
      results: The results of the trials that have ended, by name.
      found: Collects the problems.
    """
    path = folder / "summary.json"
    if not path.exists():
        if (folder / MANIFEST).exists():
            return  # The manifest has it, so that this problem is known.
        found.unchecked.append("summary.json, which does not exist yet")
        return
    try:
        stored, raw = read_summary(path), read_json(path)
    except RunFolderError as error:
        found.note(path, reason(error, path), f"remove it and {RERUN}")
        return
    results = _with_failures(stored, points, results)
    missing = len(results) - _counted(stored)
    if missing > 0:
        found.unchecked.append(f"summary.json, which {missing} trials that have ended are not in")
        return
    bootstrap = (folder / MANIFEST).exists() or _has_bootstrap(stored)
    computed = study_summary(plan, points, results, folder, bootstrap=bootstrap)
    same_code = _is_of_this_code(plan)
    if not same_code:
        found.unchecked.append(f"the wording in {path}, which another version of fpnlab wrote")
    expected = json.loads(json_line(dataclasses.asdict(computed)))
    differing = list(_differences(raw, expected, "", same_code=same_code))
    for what in differing[:MOST]:
        found.note(path, what, RERUN)
    if rest := differing[MOST:]:
        found.note(path, f"{len(rest)} more fields differ from the results", RERUN)


def _with_failures(
    summary: Summary, points: Mapping[str, Point], results: Mapping[str, RunResult]
) -> dict[str, RunResult]:
    """Returns the results with those of failed trials, which leave none, from the summary.

    The ledger has them, too, unless it is missing.
    """
    failed = {
        row.trial: failed_result(points[row.trial], row.error)
        for row in summary.left_out
        if row.status == "failed" and row.trial in points
    }
    return failed | dict(results)


def _counted(summary: Summary) -> int:
    """Returns the number of trials in a summary, tuning trials included."""
    other = ("planned", "missing")
    main = sum(count for status, count in summary.counts.items() if status not in other)
    return main + sum(len(row.tried) for row in summary.tuning)


def _has_bootstrap(summary: Summary) -> bool:
    rows = (*summary.differences, *summary.changes, *summary.change_differences, *summary.gains)
    return bool(summary.items_left_out) or any(row.bootstrap is not None for row in rows)


def _is_of_this_code(plan: StudyFile) -> bool:
    """Returns whether this version of the package, and this commit, wrote a study."""
    versions = plan.env.get("versions")
    version = versions.get("fpnlab") if isinstance(versions, dict) else None
    ours = (importlib.metadata.version("fpnlab"), code_commit())
    return (version, plan.env.get("commit")) == ours


def _differences(stored: object, computed: object, where: str, *, same_code: bool) -> Iterator[str]:
    """Yields a phrase for each field that differs, with its dotted path."""
    match stored, computed:
        case dict(), dict():
            # A version may add fields; the version that wrote a file has written all of them.
            names = (
                stored.keys() | computed.keys() if same_code else stored.keys() & computed.keys()
            )
            for name in sorted(names):
                yield from _differences(
                    stored.get(name),
                    computed.get(name),
                    f"{where}.{name}".lstrip("."),
                    same_code=same_code,
                )
            return
        case list(), list() if len(stored) == len(computed):
            for i, (old, new) in enumerate(zip(stored, computed)):
                yield from _differences(old, new, f"{where}.{i}", same_code=same_code)
            return
        case bool(), bool():
            equal = stored == computed
        case int() | float(), int() | float():
            equal = math.isclose(stored, computed, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        case _:
            equal = stored == computed
    names = [part for part in where.split(".") if not part.isdecimal()]
    is_wording = isinstance(stored, str) or names[-1] == "findings"
    if equal or (is_wording and not same_code and names[-1] not in IDENTITIES):
        return
    yield f"{where} is {_brief(stored)}, but the results give {_brief(computed)}"


def _brief(value: object) -> str:
    """Returns a value as short text."""
    match value:
        case list():
            return f"{len(value)} entries"
        case dict():
            return f"{len(value)} fields"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
