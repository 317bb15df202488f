"""Files of a study folder: ``study.json`` and ``summary.json``."""

import dataclasses
import pathlib
from typing import Annotated, Literal

import pydantic

from fpnlab.records.json_files import AxisValue, JsonObject, read_record, write_json

Verdict = Literal["above", "below", "undecided", "unmeasured"]
"""Side of zero on which the interval of a difference lies."""
Decision = Literal["supported", "refuted", "undecided"]
ClaimVerdict = Literal["SUPPORTED", "REFUTED", "PARTIAL", "INCONCLUSIVE"]


def axis_label(path: str) -> str:
    """Returns an axis in words by the dotted path of its field, such as "batch size"."""
    return path.rpartition(".")[2].replace("_", " ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataProblem:
    """A problem in the data, and how it was handled on loading."""

    file: str
    """The file, relative to the folder of the data set."""
    where: str
    """The place in the file."""
    what: str
    """The problem, and how it was handled."""


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
    """Problems found on loading."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Addition:
    """A change of a study after it was begun."""

    date: str
    """Date and time in UTC, ISO 8601."""
    what: str
    """The added or changed parts in words, such as "seeds 3, 4"."""
    trials: int
    """Number of added trials."""
    ended: int
    """Number of trials that had a result before."""
    seeds: list[int] = dataclasses.field(default_factory=list)
    """The added seeds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyFile:
    """The content of ``study.json``: the plan of a study, written before its first trial."""

    name: str
    """Name of the data set."""
    question: str = ""
    """The question that the study answers."""
    command: str = ""
    """The command line."""
    trials: int
    """Number of main trials, without tuning trials."""
    seeds: list[int]
    """Seeds, by which arms are paired."""
    arms: list[str]
    """Arms, combined with the values of the axes after the first; the first is the baseline."""
    axis: str
    """Dotted path of the field of the first axis."""
    axis_values: list[AxisValue]
    """Labels of the values of the first axis."""
    metric: str
    """The metric that the study compares."""
    tune: str | None = None
    """Dotted path of the tuned field; None without tuning."""
    claims: list[JsonObject] = dataclasses.field(default_factory=list)
    """Claims with their rules, as returned by `fpnlab.config.claims.write_claims`."""
    holm_over: Literal["claim", "study"] = "claim"
    """The family of rules whose p-values are adjusted together."""
    examples: int | None = None
    """Training images per trial, repeats included; None if ``updates`` is given."""
    updates: int | None = None
    """Optimizer steps per trial; None if ``examples`` is given."""
    dataset: DatasetInfo = dataclasses.field(default_factory=DatasetInfo)
    """The data of the main trials."""
    env: JsonObject = dataclasses.field(default_factory=dict)
    """Versions, device and flags, as in ``env.json``."""
    config: JsonObject = dataclasses.field(default_factory=dict)
    """The resolved experiment with its study."""
    additions: list[Addition] = dataclasses.field(default_factory=list)
    """Trials that were added after the study was begun, and other changes, in order."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BootstrapInterval:
    """Bootstrap interval of a difference over seeds and test items."""

    low: float
    """Lower bound in points."""
    high: float
    """Upper bound in points."""
    items: int
    """Number of test items."""
    verdict: Verdict
    """Side of zero on which the interval lies."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """A mean over seeds or a paired difference of means, with its 95 % Student-t interval."""

    metric: str
    """Name of the metric."""
    evaluation: str
    """Source of batch-norm statistics."""
    arm: str
    """The arm."""
    axis_value: AxisValue = None
    """Axis value; None for a change along the axis."""
    reference: str | None = None
    """The subtracted arm of a difference."""
    start: AxisValue = None
    """Axis value at the start of a change."""
    end: AxisValue = None
    """Axis value at the end of a change."""
    mean: float | None
    """Mean over seeds in points; None if it was not measured."""
    low: float | None
    """Lower bound in points; None for fewer than two seeds."""
    high: float | None
    """Upper bound in points; None if ``low`` is."""
    n: int
    """Number of seeds."""
    values: dict[int, float | None]
    """Points by seed."""
    verdict: Verdict | None = None
    """For a difference, the side of zero on which the interval lies."""
    failures: str = ""
    """A sentence on the decisions that failed trials rule out."""
    bootstrap: Annotated[
        BootstrapInterval | None,
        pydantic.Field(validation_alias=pydantic.AliasChoices("bootstrap", "second_opinion")),
    ] = None
    """Interval over seeds and test items; None if trials have stored no items."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """Training examples per second, over seeds."""

    arm: str
    """The arm."""
    axis_value: AxisValue
    """Value of the axis."""
    mean: float | None
    """Mean over seeds."""
    low: float | None
    """Lower bound of the 95 % Student-t interval."""
    high: float | None
    """Upper bound of the 95 % Student-t interval."""
    n: int
    """Number of seeds."""
    values: dict[int, float | None]
    """Examples per second by seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftOutRow:
    """A trial without a measurement."""

    trial: str
    """Name of the trial."""
    arm: str
    """Arm of the trial."""
    axis_value: AxisValue
    """Axis value of the trial."""
    seed: int
    """Seed of the trial."""
    status: str
    """``diverged`` or ``failed``."""
    error: str | None = None
    """Why it diverged or failed."""


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
    """The study's metric on validation images in points; None if the trial has none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningRow:
    """Tuning for one arm and axis value."""

    arm: str
    """The arm."""
    axis_value: AxisValue
    """Value of the axis."""
    chosen: float | None
    """The best value; None if tuning failed."""
    tried: list[TriedValue]
    """All tried values."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuleRecord:
    """A rule of a claim, of any kind (`fpnlab.config.claims`)."""

    kind: str
    """``difference``, ``difference_in_differences`` or ``equivalence``."""
    arm: str
    """The arm."""
    baseline: str
    """The arm of comparison."""
    metric: str | None = None
    """The metric."""
    evaluation: str = "running"
    """Source of batch-norm statistics of the arm."""
    baseline_evaluation: str | None = None
    """Source of batch-norm statistics of the baseline; None: the same."""
    axis_values: list[AxisValue] | None = None
    """Axis values of a difference or an equivalence."""
    baseline_value: AxisValue = None
    """Axis value of the baseline; None: the same."""
    start: AxisValue = None
    """Axis value at the start of a difference in differences."""
    end: AxisValue = None
    """Axis value at the end of a difference in differences."""
    side: str | None = None
    """``above`` or ``below`` the threshold."""
    threshold: float | None = None
    """Threshold of a difference in points."""
    margin: float | None = None
    """Margin of an equivalence in points."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimate for a rule, with its confidence interval."""

    axis_values: tuple[AxisValue, ...]
    """The axis values of the estimate."""
    place: str
    """The axis values in words."""
    mean: float | None
    """Mean over seeds in points; None if it was not measured."""
    low: float | None
    """Lower bound in points; None for fewer than two seeds."""
    high: float | None
    """Upper bound in points; None if ``low`` is."""
    level: float
    """Confidence level of the interval."""
    by_seed: dict[int, float]
    """Points by seed."""
    left_out: tuple[int, ...]
    """Seeds with values in some cells but not in all: diverged, failed, or not yet run."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The decision on one rule."""

    rule: RuleRecord
    """The rule."""
    topic: str
    """The estimated number in words."""
    claim: str
    """The claimed range of the number in words."""
    decision: Decision
    """Supported, refuted or undecided."""
    estimates: tuple[Estimate, ...]
    """The estimate of the rule; for an equivalence, one per axis value."""
    p: float
    """The p-value that decides; 1 without a test."""
    p_adjusted: float
    """The p-value adjusted for the number of rules."""
    sentence: str
    """Estimates, claim and decision as a sentence."""


@dataclasses.dataclass(frozen=True)
class ClaimResult:
    """The verdict on a claim."""

    verdict: ClaimVerdict
    """The verdict on all rules together."""
    alpha: float
    """Level of the tests."""
    outcomes: tuple[Outcome, ...]
    """One outcome per rule, in order."""
    sentence: str
    """The verdict with the tally of decisions as a sentence."""
    statement: str = ""
    """The claim."""
    hash: str = ""
    """SHA-256 of the claim with its rules."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaimBootstrap:
    """Bootstrap interval of a rule's estimate; the decision uses the t interval."""

    claim: int
    """Index of the claim."""
    rule: int
    """Index of the rule in the claim."""
    place: str
    """Axis values in words."""
    low: float
    """Lower bound in points."""
    high: float
    """Upper bound in points."""
    level: float
    """Level of the interval."""
    n: int
    """Number of seeds."""
    items: int
    """Number of test items."""
    agrees: bool
    """True if bootstrap and t interval lie on the same side of the threshold or margin."""
    sentence: str
    """The interval and its agreement as a sentence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutlyingSeed:
    """A seed that lies far from the others and changes a comparison or the best cell."""

    arm: str
    """The arm."""
    reference: str | None
    """The arm that is subtracted; None for the best cell."""
    axis_value: AxisValue
    """Axis value; None if the axis does not apply."""
    seed: int
    """The seed."""
    value: float
    """Points of the seed."""
    mean: float
    """Mean over all seeds in points."""
    mean_without: float
    """Mean over the other seeds in points."""
    sentence: str
    """The seed and its effect as a sentence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The study's answer: its metric with running statistics, over all arms and axis values."""

    sentences: list[str]
    """At most three: decided comparisons, change along the axis or bounds, and a caveat."""
    comparisons: list[SummaryRow] = dataclasses.field(default_factory=list)
    """Pairs of arms at each axis value; without axis value if the axis applies to neither arm."""
    adjusted: int = 0
    """Number of comparisons that are decided after Holm's adjustment for all of them."""
    outlying: list[OutlyingSeed] = dataclasses.field(default_factory=list)
    """Outlying seeds that change a comparison or select the best cell, the largest change first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of ``summary.json``: the results of a study, finished or not.

    Metrics are in points. Trials that diverged or failed are excluded from means and listed in
    ``left_out``. In comparisons they count as worse than any number, so that none is decided
    because they are excluded.
    """

    name: str
    """Name of the data set."""
    metric: str
    """The metric that the study compares."""
    level: float
    """Confidence level of all intervals."""
    axis: str
    """Dotted path of the field of the axis."""
    axis_label: str
    """The axis in words."""
    axis_values: list[AxisValue]
    """Labels of the values of the axis."""
    arms: list[str]
    """Arms, with the baseline first."""
    evaluations: list[str]
    """Sources of batch-norm statistics, with ``running`` first."""
    counts: dict[str, int]
    """Number of trials by status, ``planned`` and ``missing`` ones included."""
    left_out: list[LeftOutRow]
    """Trials without a measurement."""
    rows: list[SummaryRow]
    """Means by metric, evaluation, arm and axis value."""
    differences: list[SummaryRow]
    """Each other arm minus the baseline, paired by seed."""
    changes: list[SummaryRow]
    """An arm at the smallest axis value minus the same arm at the largest."""
    change_differences: list[SummaryRow]
    """The change of each other arm minus that of the baseline."""
    gains: list[SummaryRow]
    """Precise or batch statistics minus running statistics, where these differ."""
    best: SummaryRow | None
    """The row of the study's metric with the largest mean."""
    worst: SummaryRow | None
    """The row of the study's metric with the smallest mean."""
    speed: list[SpeedRow]
    """Examples per second."""
    tuning: list[TuningRow] = dataclasses.field(default_factory=list)
    """Tried and chosen values of the tuned field."""
    tuned: str | None = None
    """Dotted path of the tuned field."""
    verdicts: list[ClaimResult] = dataclasses.field(default_factory=list)
    """One verdict per claim."""
    holm_over: Literal["claim", "study"] = "claim"
    """The family of rules whose p-values are adjusted together."""
    claim_bootstrap: Annotated[
        list[ClaimBootstrap],
        pydantic.Field(
            validation_alias=pydantic.AliasChoices("claim_bootstrap", "second_opinions")
        ),
    ] = dataclasses.field(default_factory=list)
    """Bootstrap intervals of the rules' estimates."""
    items_left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    """Reason for each trial whose test items cannot be used."""
    findings: list[str] = dataclasses.field(default_factory=list)
    """The results as sentences."""
    answer: Answer | None = None
    """The answer in short; None in a summary of an older version."""


def read_study_file(path: pathlib.Path) -> StudyFile:
    """Returns the content of a ``study.json``.

    Raises:
      RunFolderError: The file cannot be read, or lacks a field.
    """
    return read_record(path, StudyFile, "the description of a study")


def read_summary(path: pathlib.Path) -> Summary:
    """Returns the content of a ``summary.json``.

    Raises:
      RunFolderError: The file cannot be read, or lacks a field.
    """
    return read_record(path, Summary, "the summary of a study")


def write_record(path: pathlib.Path, record: StudyFile | Summary) -> None:
    """Writes a ``study.json`` or ``summary.json`` atomically."""
    write_json(path, dataclasses.asdict(record))
