"""Columns of ``table.csv``, which has a row for each trial and evaluation of a study."""

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
