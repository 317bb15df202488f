"""Verdicts from the table of a report and the config alone, without the study's folder."""

from collections.abc import Iterable, Mapping
from typing import Any

from fpnlab.analysis.summary import judge_results
from fpnlab.config.study import Study, description

TRIAL_FIELDS = (
    "trial",
    "arm",
    "axis_value",
    "seed",
    "status",
    "error",
    "examples",
    "steps",
    "seconds",
    "norm_batch",
    "smallest_count",
    "final_loss",
    "parameters",
)


def axis_column(path: str) -> str:
    """Returns the name of the axis value's column: the field's, if no other column has that."""
    name = path.rpartition(".")[2]
    return "axis_value" if name in TRIAL_FIELDS else name


def judge_table(study: Study, rows: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Returns the verdicts on a study's claims, as ``summary.json`` has them.

    Args:
        study: The study, with its claims.
        rows: Those of a ``table.csv``, as ``csv.DictReader`` reads them.
    """
    rows = list(rows)
    # Tables from before there was this column do not say.
    counts = {int(row["test_images"]) for row in rows if row.get("test_images")}
    dataset = {"test_images": max(counts, default=None)}
    known = {**description(study), "dataset": dataset}
    return judge_results(known, results_from_table(study, rows))


def results_from_table(study: Study, rows: Iterable[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Returns what the rows of a ``table.csv`` say of each trial that has ended.

    Args:
        study: The study that the table is of.
        rows: A row for each trial and evaluation; the metrics, from 0 to 1, are the columns after
            ``evaluation``.

    Raises:
        ValueError: If a row has an axis value that is none of the study's.
    """
    axis = axis_column(study.axes[0].paths[0])
    labels = {str(value): value for value in study.axis_values} | {"": None}
    results: dict[str, dict[str, Any]] = {}
    for row in rows:
        if not row["arm"]:  # A trial without a result.
            continue
        if row[axis] not in labels:
            raise ValueError(
                f"{row['trial']}: {axis} is {row[axis]}, which is no value of the study's axis; "
                f"these are: {', '.join(map(str, study.axis_values))}"
            )
        place = {"arm": row["arm"], "axis_value": labels[row[axis]], "seed": int(row["seed"])}
        own = {**place, "status": row["status"], "metrics": {}}
        names = list(row)
        numbers = {name: row[name] for name in names[names.index("evaluation") + 1 :]}
        results.setdefault(row["trial"], own)["metrics"][row["evaluation"]] = {
            name: float(text) if text else None for name, text in numbers.items()
        }
    return list(results.values())
