"""Plans and results of studies that tests make up."""

from fpnlab.records.run_records import RunResult
from fpnlab.records.study_records import DatasetInfo, StudyFile


def plan_of(fields):
    """The plan of a study from its fields; seeds and dataset may be left out."""
    dataset = DatasetInfo(**fields.get("dataset", {}))
    return StudyFile(**{"seeds": [0, 1, 2], **fields, "dataset": dataset})


def results_of(rows):
    """Results from their fields."""
    return [RunResult(**row) for row in rows]
