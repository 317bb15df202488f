"""Verdicts from ``table.csv`` and the config alone, without the study folder."""

from collections.abc import Iterable, Mapping

from fpnlab.analysis.summary import judge_results
from fpnlab.config.study import Study, study_file
from fpnlab.records.plain_text import from_table_cell
from fpnlab.records.run_records import RunResult
from fpnlab.records.study_records import ClaimResult, DatasetInfo
from fpnlab.records.trial_table import axis_column


def judge_table(study: Study, rows: Iterable[Mapping[str, str]]) -> list[ClaimResult]:
    """Returns the verdicts on a study's claims, equal to those in ``summary.json``.

    Args:
      study: The study, with its claims.
      rows: The rows of a ``table.csv``, as ``csv.DictReader`` reads them.
    """
    rows = list(rows)
    # Old tables lack this column.
    counts = {int(row["test_images"]) for row in rows if row.get("test_images")}
    dataset = DatasetInfo(test_images=max(counts, default=None))
    results = results_from_table(study, rows)
    plan = study_file(study, name="", trials=len(results), dataset=dataset)
    return judge_results(plan, results)


def results_from_table(study: Study, rows: Iterable[Mapping[str, str]]) -> list[RunResult]:
    """Returns the results of trials, with the fields that ``table.csv`` contains.

    Args:
      study: The study of the table.
      rows: One row per trial and evaluation; the columns after ``evaluation`` are the metrics, from
        0 to 1.

    Raises:
      ValueError: A row has an axis value that is not in the study.
    """
    rows = [{from_table_cell(k): from_table_cell(v) for k, v in row.items()} for row in rows]
    axis = axis_column(study.axes[0].paths[0])
    labels = {str(value): value for value in study.axis_values} | {"": None}
    results: dict[str, RunResult] = {}
    for row in rows:
        if not row["arm"]:  # A trial without a result.
            continue
        if row[axis] not in labels:
            raise ValueError(
                f"{row['trial']}: {axis}: unknown value {row[axis]}; expected one of "
                f"{', '.join(map(str, study.axis_values))}"
            )
        if row["trial"] not in results:
            results[row["trial"]] = RunResult(
                trial=row["trial"],
                arm=row["arm"],
                axis_value=labels[row[axis]],
                seed=int(row["seed"]),
                status=row["status"],  # type: ignore[arg-type]
                metrics={},
            )
        names = list(row)
        numbers = {name: row[name] for name in names[names.index("evaluation") + 1 :]}
        results[row["trial"]].metrics[row["evaluation"]] = {
            name: float(text) if text else None for name, text in numbers.items()
        }
    return list(results.values())
