"""Files of a study folder: ``study.json`` and ``summary.json``."""

import dataclasses
import pathlib
from typing import Annotated, Literal

import pydantic

from fpnlab.records.json_files import AxisValue, JsonObject, read_record, write_json

Verdict = Literal["above", "below", "undecided", "unmeasured"]
"""Side of zero on which a difference is shown to lie."""
Decision = Literal["supported", "refuted", "undecided"]
ClaimVerdict = Literal["SUPPORTED", "REFUTED", "PARTIAL", "INCONCLUSIVE"]


def axis_label(path: str) -> str:
    """Returns the words for an axis, by the dotted path of its field: "batch size"."""
    return path.rpartition(".")[2].replace("_", " ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataProblem:
    """Something that was left out or changed while loading the data."""

    file: str
    """The file it is in, relative to the data set's folder."""
    where: str
    """The place in the file."""
    what: str
    """The problem, and its treatment."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The data of a study."""

    name: str = ""
    """Name of the data set."""
    class_names: list[str] = dataclasses.field(default_factory=list)
    """Names of the classes."""
    train_images: int | None = None
    """Number of training images."""
    test_images: int | None = None
    """Number of test images."""
    problems: list[DataProblem] = dataclasses.field(default_factory=list)
    """Empty for clean data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyFile:
    """``study.json``: the plan of a study, written before its first trial."""

    name: str
    """Name of the data set."""
    question: str = ""
    """The question that the study answers."""
    command: str = ""
    """The command line."""
    trials: int
    """Trials that count; those that tune are not among them."""
    seeds: list[int]
    """Seeds, by which arms are paired."""
    arms: list[str]
    """Arms, multiplied by the axes after the first; the first one is the baseline."""
    axis: str
    """Dotted path of the first axis' field."""
    axis_values: list[AxisValue]
    """Labels of its values."""
    metric: str
    """The metric that is compared."""
    tune: str | None = None
    """Dotted path of the tuned field; None: nothing is tuned."""
    claims: list[JsonObject] = dataclasses.field(default_factory=list)
    """Claims with their rules, as `fpnlab.config.claims.write_claims` gives them."""
    holm_over: Literal["claim", "study"] = "claim"
    """The family of rules whose p-values are adjusted together."""
    examples: int | None = None
    """Training images of a trial, repeats included; None: by ``updates``."""
    updates: int | None = None
    """Optimizer steps of a trial; None: by ``examples``."""
    dataset: DatasetInfo = dataclasses.field(default_factory=DatasetInfo)
    """The data of the trials that count."""
    env: JsonObject = dataclasses.field(default_factory=dict)
    """Versions, device, flags."""
    config: JsonObject = dataclasses.field(default_factory=dict)
    """The resolved experiment with its study."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BootstrapInterval:
    """Bootstrap interval of a difference over seeds and test items."""

    low: float
    """Lower bound, points."""
    high: float
    """Upper bound, points."""
    items: int
    """Number of test items."""
    verdict: Verdict
    """Side of zero on which it lies."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """A mean over seeds, or a difference of two, in points with a 95 % Student-t interval."""

    metric: str
    """Name of the metric."""
    evaluation: str
    """Source of batch-norm statistics."""
    arm: str
    """The arm."""
    axis_value: AxisValue = None
    """Value of the axis; None for a change along it."""
    reference: str | None = None
    """The arm that is subtracted."""
    start: AxisValue = None
    """Axis value where a change begins."""
    end: AxisValue = None
    """Axis value where a change ends."""
    mean: float | None
    """Mean over seeds; None: not measured."""
    low: float | None
    """Lower bound; None for fewer than two seeds."""
    high: float | None
    """Upper bound."""
    n: int
    """Number of seeds."""
    values: dict[int, float | None]
    """By seed."""
    verdict: Verdict | None = None
    """Of a difference: the side of zero on which it lies."""
    failures: str = ""
    """A sentence on what failed trials keep from being decided."""
    bootstrap: Annotated[
        BootstrapInterval | None,
        pydantic.Field(validation_alias=pydantic.AliasChoices("bootstrap", "second_opinion")),
    ] = None
    """Interval over seeds and test items; None where trials keep no items."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """Examples a second of whole trials, over seeds."""

    arm: str
    """The arm."""
    axis_value: AxisValue
    """Value of the axis."""
    mean: float | None
    """Mean over seeds."""
    low: float | None
    """Lower bound of the 95 % Student-t interval."""
    high: float | None
    """Upper bound."""
    n: int
    """Number of seeds."""
    values: dict[int, float | None]
    """By seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftOutRow:
    """A trial without a measurement."""

    trial: str
    """Name of the trial."""
    arm: str
    """Its arm."""
    axis_value: AxisValue
    """Its value of the axis."""
    seed: int
    """Its seed."""
    status: str
    """``diverged`` or ``failed``."""
    error: str | None = None
    """Why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TriedValue:
    """One value of the tuned field."""

    trial: str
    """Name of the tuning trial."""
    value: float
    """Value of the field."""
    status: str
    """Status of the trial."""
    points: float | None
    """The study's metric on validation images; None where the trial has none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningRow:
    """Tuning for one arm and axis value."""

    arm: str
    """The arm."""
    axis_value: AxisValue
    """Value of the axis."""
    chosen: float | None
    """The best value; None where tuning failed."""
    tried: list[TriedValue]
    """All values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleRecord:
    """A rule of a claim, of any kind (`fpnlab.config.claims`)."""

    kind: str
    """``difference``, ``difference_in_differences`` or ``equivalence``."""
    arm: str
    """The arm."""
    baseline: str
    """The arm it is compared with."""
    metric: str | None = None
    """The metric."""
    evaluation: str = "running"
    """Source of batch-norm statistics of the arm."""
    baseline_evaluation: str | None = None
    """Source of the baseline; None: the same."""
    axis_values: list[AxisValue] | None = None
    """Axis values of a difference or an equivalence."""
    baseline_value: AxisValue = None
    """Axis value of the baseline; None: the same."""
    start: AxisValue = None
    """Start of a difference in differences."""
    end: AxisValue = None
    """End of a difference in differences."""
    side: str | None = None
    """``above`` or ``below`` the threshold."""
    threshold: float | None = None
    """In points."""
    margin: float | None = None
    """Of an equivalence, in points."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number that a rule is about, with its interval; None is what cannot be given."""

    axis_values: tuple[AxisValue, ...]
    """The axis values that went into it."""
    place: str
    """The same in words."""
    mean: float | None
    """Mean over seeds, points."""
    low: float | None
    """Lower bound; None for fewer than two seeds."""
    high: float | None
    """Upper bound; None where the lower one is."""
    level: float
    """Level of the interval."""
    by_seed: dict[int, float]
    """The number of each seed that counts."""
    left_out: tuple[int, ...]
    """Seeds with a value in some of the cells but not in all: diverged, failed, or not yet run."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The decision on one rule."""

    rule: RuleRecord
    """The rule."""
    topic: str
    """Its number, in words."""
    claim: str
    """The claim about the number, in words."""
    decision: Decision
    """Supported, refuted or undecided."""
    estimates: tuple[Estimate, ...]
    """The rule's number; of an equivalence, one an axis value."""
    p: float
    """The p-value that decides; 1 without a test."""
    p_adjusted: float
    """The p-value adjusted for the number of rules."""
    sentence: str
    """All of it in words."""


@dataclasses.dataclass(frozen=True)
class ClaimResult:
    """The verdict on a claim."""

    verdict: ClaimVerdict
    """The verdict on all rules together."""
    alpha: float
    """Level of the tests."""
    outcomes: tuple[Outcome, ...]
    """One a rule, in their order."""
    sentence: str
    """The verdict and what it rests on, in words."""
    statement: str = ""
    """The claim."""
    hash: str = ""
    """SHA-256 of the claim with its rules."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaimBootstrap:
    """Bootstrap interval of a rule's number, beside the t interval that decides."""

    claim: int
    """Number of the claim, from 0."""
    rule: int
    """Number of its rule, from 0."""
    place: str
    """Axis values, in words."""
    low: float
    """Lower bound, points."""
    high: float
    """Upper bound, points."""
    level: float
    """Level of the interval."""
    n: int
    """Number of seeds."""
    items: int
    """Number of test items."""
    agrees: bool
    """True if both intervals lie alike to what is claimed."""
    sentence: str
    """All of it in words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """``summary.json``: the results of a study, finished or not. Metrics are in points.

    Trials that are not done are left out of means and named in ``left_out``. In comparisons they
    count as worse than any number, so that none is decided for having left them out.
    """

    name: str
    """Name of the data set."""
    metric: str
    """The metric that is compared."""
    level: float
    """Level of all intervals."""
    axis: str
    """Dotted path of the axis' field."""
    axis_label: str
    """The same in words."""
    axis_values: list[AxisValue]
    """Labels of its values."""
    arms: list[str]
    """Arms, the baseline first."""
    evaluations: list[str]
    """Sources of batch-norm statistics, that of users first."""
    counts: dict[str, int]
    """Trials by status, with ``planned`` and ``missing`` ones."""
    left_out: list[LeftOutRow]
    """Trials without a measurement."""
    rows: list[SummaryRow]
    """Means by metric, evaluation, arm and axis value."""
    differences: list[SummaryRow]
    """Each later arm minus the first, paired by seed."""
    changes: list[SummaryRow]
    """An arm at the smallest axis value minus the same arm at the largest."""
    change_differences: list[SummaryRow]
    """The change of each later arm minus that of the first."""
    gains: list[SummaryRow]
    """Precise or batch statistics minus the running ones, where the two differ."""
    best: SummaryRow | None
    """The row of the study's metric with the largest mean."""
    worst: SummaryRow | None
    """The row with the smallest."""
    speed: list[SpeedRow]
    """Examples a second."""
    tuning: list[TuningRow] = dataclasses.field(default_factory=list)
    """Tried and chosen values of the tuned field."""
    tuned: str | None = None
    """Dotted path of the tuned field."""
    verdicts: list[ClaimResult] = dataclasses.field(default_factory=list)
    """One a claim."""
    holm_over: Literal["claim", "study"] = "claim"
    """The family of rules whose p-values are adjusted together."""
    claim_bootstrap: Annotated[
        list[ClaimBootstrap],
        pydantic.Field(
            validation_alias=pydantic.AliasChoices("claim_bootstrap", "second_opinions")
        ),
    ] = dataclasses.field(default_factory=list)
    """Bootstrap intervals of the rules' numbers."""
    items_left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    """Why the test items of a trial do not count, by trial."""
    findings: list[str] = dataclasses.field(default_factory=list)
    """The results in sentences."""


def read_study_file(path: pathlib.Path) -> StudyFile:
    """Returns the content of a ``study.json``.

    Raises:
      RunFolderError: It cannot be read, or lacks a field.
    """
    return read_record(path, StudyFile, "the description of a study")


def read_summary(path: pathlib.Path) -> Summary:
    """Returns the content of a ``summary.json``; raises as ``read_study_file``."""
    return read_record(path, Summary, "the summary of a study")


def write_record(path: pathlib.Path, record: StudyFile | Summary) -> None:
    """Writes a ``study.json`` or ``summary.json`` in one move."""
    write_json(path, dataclasses.asdict(record))
