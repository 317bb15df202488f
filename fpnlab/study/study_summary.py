"""The summary of a study from the results of its trials, and the manifest that seals both."""

import pathlib
from collections.abc import Mapping

from fpnlab.analysis.bootstrap import with_bootstrap
from fpnlab.analysis.summary import summarize
from fpnlab.config.study import Point
from fpnlab.records.manifest import MANIFEST, seal
from fpnlab.records.run_records import RunResult
from fpnlab.records.study_records import StudyFile, Summary
from fpnlab.study.context import run_path


def study_summary(
    description: StudyFile,
    points: Mapping[str, Point],
    results: Mapping[str, RunResult],
    folder: pathlib.Path,
    *,
    bootstrap: bool,
) -> Summary:
    """Returns the summary of a study, finished or not.

    Args:
      description: The plan.
      points: The trials by name, in the order of the study.
      results: The results of the trials that have ended, by name.
      folder: The study folder.
      bootstrap: If true, adds bootstrap intervals, for which a file of every trial is read.
    """
    parts: dict[str, list[RunResult]] = {"test": [], "validation": []}
    for name, point in points.items():
        if name in results:
            parts[point.split].append(results[name])
    summary = summarize(description, parts["test"], parts["validation"])
    if not bootstrap:
        return summary
    run_folder = lambda name: folder / run_path(points[name])
    return with_bootstrap(summary, description, parts["test"], run_folder)


def seal_study(folder: pathlib.Path, points: Mapping[str, Point]) -> None:
    """Writes the manifest of a study whose last trial has ended.

    A trial without a manifest is left out: it failed, or an older version ran it.
    """
    optional = ["data.json", *(f"{run_path(point)}/{MANIFEST}" for point in points.values())]
    there = [name for name in optional if (folder / name).is_file()]
    seal(folder, ["study.json", "summary.json", *there])
