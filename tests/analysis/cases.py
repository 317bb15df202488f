"""Plans and results of artificial studies."""

from fpnlab.records.run_records import RunResult
from fpnlab.records.study_records import DatasetInfo, StudyFile


def plan_of(fields):
    """Returns the plan of a study from its fields, with defaults for seeds and dataset."""
    dataset = DatasetInfo(**fields.get("dataset", {}))
    return StudyFile(**{"seeds": [0, 1, 2], **fields, "dataset": dataset})


def results_of(rows):
    """Returns results from their fields."""
    return [RunResult(**row) for row in rows]
