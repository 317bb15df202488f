"""Columns of ``table.csv``, which has one row per trial and evaluation of a study."""

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
    """Returns the column name of the axis: its field, or ``axis_value`` if that is taken."""
    name = path.rpartition(".")[2]
    return "axis_value" if name in TRIAL_FIELDS else name
