"""The grid of a study: which trials it has, and what each of them sets."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from fpnlab.config.claims import Claim, HolmOver, check_claims, label, write_claims
from fpnlab.records.study_records import StudyFile
from fpnlab.spec import Bounds, spec
from fpnlab.tasks.kinds import TASKS, Metric

MOST_TRIALS = 100_000
"""Trials of a study at most: what its ledger and its report are tested for, ten times."""


@spec
class Range:
    """Values from one number to another."""

    low: int | float
    """The first value."""
    high: int | float
    """The last value."""
    count: Annotated[int, Bounds(least=2.0, most=10_000.0)]
    """Number of values."""
    scale: Literal["linear", "log"] = "linear"
    """Neighbors have the same distance (linear) or the same ratio (log)."""

    def __post_init__(self):
        if self.count < 2 or self.low >= self.high:
            raise ValueError(
                f"low is {self.low}, high {self.high}, count {self.count}; a range needs "
                "low < high and 2 values or more"
            )
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"low is {self.low}; on a log scale it must be above 0")

    @property
    def values(self) -> tuple[int | float, ...]:
        """The values, to six digits; whole numbers where both ends are written as such."""
        steps = [i / (self.count - 1) for i in range(self.count)]
        if self.scale == "log":
            values = [self.low * (self.high / self.low) ** step for step in steps]
        else:
            values = [self.low + (self.high - self.low) * step for step in steps]
        if isinstance(self.low, int) and isinstance(self.high, int):
            return tuple(round(value) for value in values)
        return tuple(float(f"{value:.6g}") for value in values)


@spec
class Axis:
    """One field that is swept, or several that change together."""

    field: str | None = None
    """Dotted path of the field; none: `fields`."""
    fields: tuple[str, ...] | None = None
    """Dotted paths of fields that change together; the first one names the axis."""
    values: tuple[Any, ...] | Range
    """Values of the field; with `fields`, a list each. A range is a table."""
    only: tuple[str, ...] | None = None
    """Arms to which it applies; none: all. The others are run once and count at every value."""

    def __post_init__(self):
        if (self.field is None) == (self.fields is None):
            raise ValueError("give field or fields, one of the two")
        if not self.paths or len(set(self.paths)) < len(self.paths) or "seed" in self.paths:
            raise ValueError(
                f"fields is {list(self.paths)}; give each field once, and seeds by study.seeds"
            )
        if self.fields is not None and isinstance(self.values, Range):
            raise ValueError("a range is for one field; list what several fields take")
        if not self.points:
            raise ValueError("values is empty; give one or more")
        if self.only is not None and not self.only:
            raise ValueError("only is empty, so that it applies to no arm; leave it out for all")
        labels = [str(label) for label, _ in self.points]
        if len(set(labels)) < len(labels):
            raise ValueError(f"values names one entry twice: {', '.join(labels)}")

    @property
    def paths(self) -> tuple[str, ...]:
        """The fields that it sets."""
        return (self.field,) if self.field is not None else self.fields or ()

    @property
    def name(self) -> str:
        """The last part of its first field's path, with places in a list after it."""
        return _last(self.paths[0])

    @property
    def points(self) -> list[tuple[Any, dict[str, Any]]]:
        """Each point as its label, which is that of the first field's value, and what it sets."""
        values = self.values.values if isinstance(self.values, Range) else self.values
        if self.field is not None:
            return [(label(value), {self.field: value}) for value in values]
        rows: list[Any] = list(values)
        for row in rows:
            if not isinstance(row, list | tuple) or len(row) != len(self.paths):
                raise ValueError(
                    f"values has {row!r}; each must be a list of {len(self.paths)}, one value for "
                    f"each of {', '.join(self.paths)}"
                )
        return [(label(row[0]), dict(zip(self.paths, row))) for row in rows]


@spec
class Tune:
    """A field's best value for each arm and axis value, found before the trials that count."""

    field: str = "train.learning_rate"
    """Dotted path of the field, a number."""
    factors: tuple[float, ...] = (0.333, 1.0, 3.0)
    """Multiples of the value in the config, one trial each."""
    seed: int = 1000
    """Seed of these trials; none of the study's."""

    def __post_init__(self):
        if not self.factors or min(self.factors) <= 0 or len(set(self.factors)) < len(self.factors):
            raise ValueError(
                f"factors is {list(self.factors)}; give one or more, above 0, each once"
            )


@spec
class Study:
    """Arms x axes x seeds, each a training run of its own."""

    axes: tuple[Axis, ...]
    """The swept fields. The first is the report's x axis; others are multiplied into the arms."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of parameters and data order; arms are paired by them."""
    arms: dict[str, dict[str, Any]]
    """The arms: by name, the dotted fields that each sets. The first is the baseline."""
    metric: Metric = "AP"
    """The number on which the report's findings rest; of classifiers, accuracy."""
    tune: Tune | None = None
    """A field to tune on validation images for each arm and axis value; none: nothing."""
    claims: tuple[Claim, ...] = ()
    """Claims to be decided, with the rules that decide, fixed before the study runs."""
    holm_over: HolmOver = "claim"
    """Family of tests over which p-values are adjusted: the rules of each claim, or of all.

    Each claim is a question of its own by default, whose answer does not depend on what else is
    asked; of several claims without a true effect, one or more is then decided in up to the sum of
    their alphas of all studies. "study" holds that share to the largest alpha."""

    def __post_init__(self):
        for name in ("axes", "seeds", "arms"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; give one or more")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds names one entry twice: {list(self.seeds)}")
        swept = [path for axis in self.axes for path in axis.paths]
        if twice := [path for path in swept if swept.count(path) > 1]:
            raise ValueError(f"two axes set {twice[0]}; give it once")
        for outer, inner in itertools.permutations(swept, 2):
            if _holds(outer, inner):
                raise ValueError(
                    f"an axis sets {outer} and another {inner}, a part of it, which the first "
                    "would replace; let one axis set both, with fields"
                )
        for axis in self.axes:
            if unknown := set(axis.only or ()) - self.arms.keys():
                raise ValueError(
                    f"the axis {axis.name} is only for {min(unknown)}, which is no arm; "
                    f"these are: {', '.join(self.arms)}"
                )
        for arm, settings in self.arms.items():
            own = {path for axis in self._axes_of(arm) for path in axis.paths} | {"seed"}
            if both := own & settings.keys():
                raise ValueError(
                    f"arms.{arm} sets {min(both)}, which the study itself sets by its axes and "
                    "seeds; leave it out of the arm"
                )
            if replaced := [k for k in settings for path in own if _holds(path, k)]:
                raise ValueError(
                    f"arms.{arm} sets {replaced[0]}, a part of what an axis sets, which would "
                    "replace it: such trials are one experiment; leave it out of the arm, or give "
                    "the axis the parts"
                )
        if (total := self._size()) > MOST_TRIALS:
            raise ValueError(
                f"the grid has {total} trials, and a study at most {MOST_TRIALS}; split it into "
                "several studies"
            )
        if self.tune and self.tune.seed in self.seeds:
            raise ValueError(
                f"tune.seed is {self.tune.seed}, one of the study's seeds; give another, so that "
                "no trial that counts is one that chose"
            )
        tuned = self.tune.field if self.tune else ""
        if any(path == tuned or _holds(path, tuned) for path in swept):
            raise ValueError(f"tune.field is {tuned}, which an axis sets; keep one")
        places = [(place.arm, place.axis_value) for place in self.places()]
        metrics = [metric for task in TASKS for metric in task.metrics]
        check_claims(self.claims, places, self.axis_values, metrics)

    def _size(self) -> int:
        """Returns the number of trials that count."""
        of_arm = lambda arm: math.prod(len(axis.points) for axis in self._axes_of(arm))
        return len(self.seeds) * sum(map(of_arm, self.arms))

    def _axes_of(self, arm: str) -> list[Axis]:
        return [axis for axis in self.axes if axis.only is None or arm in axis.only]

    @property
    def axis_values(self) -> list[Any]:
        """The labels of the first axis."""
        return [label for label, _ in self.axes[0].points]

    @property
    def report_arms(self) -> list[str]:
        """The arms multiplied by the axes after the first: "BN learning_rate=0.1"."""
        return list(dict.fromkeys(place.arm for place in self.places()))

    def places(self) -> "Iterator[Place]":
        """Yields where seeds are repeated: the values of the first axis, in each the arms.

        An arm to which the first axis does not apply stands at its first value only.
        """
        first = self.axes[0]
        for i, point in enumerate(first.points):
            for arm, settings in self.arms.items():
                axes = self._axes_of(arm)
                if first in axes:
                    (label, swept), more = point, axes[1:]
                elif i == 0:
                    (label, swept), more = (None, {}), axes
                else:
                    continue
                for chosen in itertools.product(*(axis.points for axis in more)):
                    names = [f" {axis.name}={value}" for axis, (value, _) in zip(more, chosen)]
                    both = {k: v for point in chosen for k, v in point[1].items()}
                    yield Place("".join([arm, *names]), label, settings | swept | both)


@dataclasses.dataclass(frozen=True)
class Place:
    """An arm at a value of the first axis: what its seeds have in common."""

    arm: str
    axis_value: Any
    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Point:
    """A trial before it is an experiment: its name, its place, and what it sets."""

    name: str
    arm: str
    axis_value: Any
    seed: int
    settings: dict[str, Any]
    split: Literal["test", "validation"] = "test"
    """The images it is measured on; a trial that tunes has those held out of training."""
    tuned: dict[str, Any] | None = None
    """The tuned field with its value."""


def planned(study: Study, base: Mapping[str, Any]) -> list[Point]:
    """Returns the study's trials in their order: those that tune, then seed by seed the others.

    Args:
      study: the grid.
      base: the resolved experiment that it varies.
    """
    places = list(study.places())
    axis = study.axes[0].name
    tuning = [
        dataclasses.replace(
            _point(axis, place, study.tune.seed, setting, f"-{_last(study.tune.field)}-{value}"),
            split="validation",
            tuned=setting,
        )
        for place in places
        if study.tune
        for value in _candidates(study.tune, base, place)
        for setting in [{study.tune.field: value}]
    ]
    # Where some of the training images are held out to tune on, the others count without.
    path, _ = held_out(base)
    whole = {path: 0.0} if study.tune and path else {}
    counted = [_point(axis, place, seed, whole) for seed in study.seeds for place in places]
    return tuning + counted


def study_file(study: Study, *, name: str, trials: int, **fields: Any) -> StudyFile:
    """Returns the plan of a study as ``study.json`` holds it.

    Args:
      study: The grid.
      name: Name of the data set.
      trials: Number of trials that count.
      **fields: Further fields of `StudyFile`.
    """
    return StudyFile(
        name=name,
        trials=trials,
        seeds=list(study.seeds),
        arms=study.report_arms,
        axis=study.axes[0].paths[0],
        axis_values=study.axis_values,
        metric=study.metric,
        tune=None if study.tune is None else study.tune.field,
        claims=write_claims(study.claims, study.metric),
        holm_over=study.holm_over,
        **fields,
    )


def held_out(base: Mapping[str, Any]) -> tuple[str | None, float]:
    """Returns the dotted path and the value of the share of training images that are held out.

    Above 0, these are measured in place of the test images. Data without such a field have no
    path, and hold out nothing.
    """
    data = base["data"]
    for path, fields in (("data.validation", data), ("data.split.validation", data.get("split"))):
        if isinstance(fields, dict) and "validation" in fields:
            return path, fields["validation"]
    return None, 0.0


def applied(table: Any, settings: Mapping[str, Any]) -> Any:
    """Returns nested tables with dotted fields set; a number in a path is a place in a list."""
    for dotted, value in settings.items():
        table = _with(table, dotted.split("."), value)
    return table


def _with(table, path, value):
    if not path:
        return value
    name, *rest = path
    if isinstance(table, list) and name.isdecimal() and int(name) < len(table):
        place = int(name)
        return [*table[:place], _with(table[place], rest, value), *table[place + 1 :]]
    fields = table if isinstance(table, dict) else {}
    return {**fields, name: _with(fields.get(name), rest, value)}


def _point(axis, place, seed, more=None, suffix=""):
    value = "" if place.axis_value is None else f"-{axis}-{place.axis_value}"
    name = _slug(f"{place.arm}{value}{suffix}-seed-{seed}")
    settings = {**place.settings, **(more or {}), "seed": seed}
    return Point(name, place.arm, place.axis_value, seed, settings)


def _candidates(tune, base, place):
    """The values of the tuned field at a place: whole numbers, or to six digits."""
    value = applied(base, place.settings)
    for name in tune.field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    match value:
        case bool():
            pass
        case int():
            return [round(value * factor) for factor in tune.factors]
        case float():
            return [float(f"{value * factor:.6g}") for factor in tune.factors]
    raise ValueError(f"tune.field is {tune.field}, which is {value!r}; it must be a number")


def _holds(outer, inner):
    """Returns whether a dotted path is inside what another one sets."""
    return inner.startswith(f"{outer}.")


def _last(path):
    """The last part of a path, with places in a list after it: ``widths.1``."""
    return re.sub(r".*?([^.]+(\.\d+)*)$", r"\1", path)


def _slug(text):
    return re.sub(r"[^a-z0-9._-]", "-", text.lower())
