"""The grid of a study (arms, axes and seeds) and the trials that it consists of."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from fpnlab.config.claims import Claim, HolmOver, check_claims, label, write_claims
from fpnlab.config.field_error import FieldError, unknown
from fpnlab.records.json_files import AxisValue, JsonObject
from fpnlab.records.study_records import StudyFile
from fpnlab.spec import Bounds, spec
from fpnlab.tasks.kinds import TASKS, Metric

T = TypeVar("T")
MOST_TRIALS = 100_000
"""Largest number of trials of a study; ledger and report are tested with a tenth of it."""


@spec
class Range:
    """Evenly spaced values from one number to another."""

    low: int | float
    """First value of the range."""
    high: int | float
    """Last value of the range, above `low`."""
    count: Annotated[int, Bounds(least=2.0, most=10_000.0)]
    """Number of values, both ends included."""
    scale: Literal["linear", "log"] = "linear"
    """Spacing of neighboring values: the same difference (linear) or the same ratio (log)."""

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise FieldError(("low", f"is {self.low}; it must be below high = {self.high}"))
        if self.scale == "log" and self.low <= 0:
            raise FieldError(("low", f"is {self.low}; on a log scale it must be above 0"))

    @property
    def values(self) -> tuple[int | float, ...]:
        """The values, rounded to six digits; to whole numbers if both ends are integers."""
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
    """Dotted path of the swept field; none: `fields` are swept."""
    fields: tuple[str, ...] | None = None
    """Dotted paths of fields that change together; the first one names the axis."""
    values: tuple[object, ...] | Range
    """Values of the field, a list or a range; with `fields`, a list of one value for each."""
    only: tuple[str, ...] | None = None
    """Names of the arms that the axis applies to; none: all. Other arms are run once a seed, and
    count at every value."""

    def __post_init__(self) -> None:
        if self.field is None and self.fields is None:
            raise FieldError(("field", "is required; set it, or fields for several fields"))
        if self.field is not None and self.fields is not None:
            raise FieldError(("field", "is set, and so is fields; set one of the two"))
        name = "field" if self.fields is None else "fields"
        if "seed" in self.paths:
            raise FieldError((name, "has 'seed'; set the seeds of a study with study.seeds"))
        if not self.paths or _repeated(self.paths):
            problem = f"is {list(self.paths)}; it must have one path or more, each once"
            raise FieldError((name, problem))
        if self.fields is not None and isinstance(self.values, Range):
            problem = f"is a range; it must be a list, of one value for each of {self._paths_text}"
            raise FieldError(("values", problem))
        if not self.points:
            raise FieldError(("values", "is empty; it must have one value or more"))
        if self.only is not None and not self.only:
            raise FieldError(
                ("only", "is empty, so that no arm has the axis; remove it for all arms")
            )
        labels = [label for label, _ in self.points]
        # Also 1 and 1.0, or 1 and true, which are one value where results are compared.
        if twice := [*_repeated([str(label) for label in labels]), *_repeated(labels)]:
            raise FieldError(("values", f"has {twice[0]} twice; it must have each value once"))

    @property
    def paths(self) -> tuple[str, ...]:
        """Dotted paths of the fields that the axis sets."""
        return (self.field,) if self.field is not None else self.fields or ()

    @property
    def _paths_text(self) -> str:
        return ", ".join(self.paths)

    @property
    def name(self) -> str:
        """The last part of its first field's path, with indices of a list after it."""
        return _last(self.paths[0])

    @property
    def points(self) -> list[tuple[AxisValue, JsonObject]]:
        """Each point as the label of its first field's value, and the fields that it sets."""
        values = self.values.values if isinstance(self.values, Range) else self.values
        if self.field is not None:
            return [(label(value), {self.field: value}) for value in values]
        points: list[tuple[AxisValue, JsonObject]] = []
        for i, row in enumerate(values):
            if not isinstance(row, list | tuple) or len(row) != len(self.paths):
                problem = (
                    f"is {row!r}; it must be a list of {len(self.paths)}, one value for each of "
                    f"{self._paths_text}"
                )
                raise FieldError((f"values.{i}", problem))
            points.append((label(row[0]), dict(zip(self.paths, row))))
        return points


@spec
class Tune:
    """Search for a field's best value for each arm and axis value, before the other trials."""

    field: str = "train.learning_rate"
    """Dotted path of the tuned field, which must be a number."""
    factors: tuple[float, ...] = (0.333, 1.0, 3.0)
    """Multiples of the field's value in the config that are tried, one trial each."""
    seed: int = 1000
    """Seed of the tuning trials; must not be one of the study's seeds."""

    def __post_init__(self) -> None:
        if not self.factors or min(self.factors) <= 0 or _repeated(self.factors):
            problem = f"is {list(self.factors)}; it must have one number or more above 0, each once"
            raise FieldError(("factors", problem))


@spec
class Study:
    """A grid of training runs: every arm at every value of the axes, repeated over seeds."""

    axes: tuple[Axis, ...]
    """Swept fields. The first is the x axis of the report; others are multiplied into the arms."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial parameters and data order; arms are compared seed by seed."""
    arms: dict[str, JsonObject]
    """The arms: by name, the dotted fields that each arm sets. The first is the baseline."""
    metric: Metric = "AP"
    """Metric that arms are compared by; the default for classifiers is accuracy."""
    tune: Tune | None = None
    """Field to tune on validation images for each arm and axis value; none: no tuning."""
    claims: tuple[Claim, ...] = ()
    """Claims with the rules that decide them, fixed before the study runs."""
    holm_over: HolmOver = "claim"
    """Family of rules whose p-values are adjusted together: those of each claim, or of all claims.

    With "claim" the verdict on a claim does not depend on the other claims. If no claim has a true
    effect, the probability that one or more is still found to hold can then reach the sum of their
    alphas; with "study" it stays below the largest alpha."""

    def __post_init__(self) -> None:
        if empty := [name for name in ("axes", "seeds", "arms") if not getattr(self, name)]:
            problem = "is empty; it must have one entry or more"
            raise FieldError(*((name, problem) for name in empty))
        if twice := _repeated(self.seeds):
            raise FieldError(("seeds", f"has {twice[0]} twice; it must have each seed once"))
        self._check_axes()
        self._check_arms()
        if (total := self._size()) > MOST_TRIALS:
            problem = (
                f"make {total} trials; a study has at most {MOST_TRIALS}; split it into several"
            )
            raise FieldError(("axes", problem))
        self._check_tune()
        places = [(place.arm, place.axis_value) for place in self.places()]
        metrics = [metric for task in TASKS for metric in task.metrics]
        check_claims(self.claims, places, self.axis_values, metrics)

    def _check_axes(self) -> None:
        """Checks that no field is set by two axes, and that `Axis.only` names arms."""
        swept = self._swept
        if twice := _repeated(swept):
            raise FieldError(("axes", f"set {twice[0]} twice; set it with one axis"))
        for outer, inner in itertools.permutations(swept, 2):
            if _contains(outer, inner):
                problem = (
                    f"set {outer}, and {inner} inside it, which the first would replace; set both "
                    "with the fields of one axis"
                )
                raise FieldError(("axes", problem))
        problems = [
            (f"axes.{i}.only", unknown("arm", arm, list(self.arms)))
            for i, axis in enumerate(self.axes)
            for arm in axis.only or ()
            if arm not in self.arms
        ]
        if problems:
            raise FieldError(*problems)

    def _check_arms(self) -> None:
        """Checks that no arm sets a field that its axes set, or a part of one."""
        problems = []
        for arm, settings in self.arms.items():
            own = {path for axis in self._axes_of(arm) for path in axis.paths} | {"seed"}
            for field in settings:
                if field in own:
                    problem = "is set by the axes and seeds of the study; remove it from the arm"
                    problems.append((f"arms.{arm}.{field}", problem))
                elif outer := [path for path in own if _contains(path, field)]:
                    # The axis sets the whole table after the arm has set its part.
                    problem = (
                        f"is a part of {outer[0]}, which an axis replaces, so that it has no "
                        "effect; remove it from the arm, or let the axis set the other parts alone"
                    )
                    problems.append((f"arms.{arm}.{field}", problem))
        if problems:
            raise FieldError(*problems)

    def _check_tune(self) -> None:
        """Checks that tuning has a seed and a field of its own."""
        if self.tune is None:
            return
        if self.tune.seed in self.seeds:
            problem = (
                f"is {self.tune.seed}, one of the study's seeds; it must be another, so that the "
                "trials that choose a value are not those that count"
            )
            raise FieldError(("tune.seed", problem))
        field = self.tune.field
        if any(path == field or _contains(path, field) for path in self._swept):
            problem = f"is {field!r}, which an axis sets; tune another field, or remove the axis"
            raise FieldError(("tune.field", problem))

    @property
    def _swept(self) -> list[str]:
        return [path for axis in self.axes for path in axis.paths]

    def _size(self) -> int:
        """Returns the number of trials that count."""
        sizes = [math.prod(len(axis.points) for axis in self._axes_of(arm)) for arm in self.arms]
        return len(self.seeds) * sum(sizes)

    def _axes_of(self, arm: str) -> list[Axis]:
        return [axis for axis in self.axes if axis.only is None or arm in axis.only]

    @property
    def axis_values(self) -> list[AxisValue]:
        """Labels of the values of the first axis."""
        return [label for label, _ in self.axes[0].points]

    @property
    def report_arms(self) -> list[str]:
        """Names of the arms, multiplied by the axes after the first: "BN learning_rate=0.1"."""
        return list(dict.fromkeys(place.arm for place in self.places()))

    def places(self) -> "Iterator[Place]":
        """Yields the cells of the grid that seeds repeat: for each axis value, each arm.

        An arm to which the first axis does not apply has one place, listed at the first value.
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
    """An arm at a value of the first axis; its trials differ in their seed."""

    arm: str
    """Name of the arm, with the values of the axes after the first."""
    axis_value: AxisValue
    """Label of the value of the first axis; None: the axis does not apply to the arm."""
    settings: JsonObject
    """Dotted fields that it sets."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A planned trial: its name, its place in the grid, and the fields that it sets."""

    name: str
    """Name of the trial and of its folder."""
    arm: str
    """Name of the arm, with the values of the axes after the first."""
    axis_value: AxisValue
    """Label of the value of the first axis; None: the axis does not apply to the arm."""
    seed: int
    """Seed of initial parameters and data order."""
    settings: JsonObject
    """Dotted fields that it sets."""
    split: Literal["test", "validation"] = "test"
    """Images that it is evaluated on; tuning trials use those held out of training."""
    tuned: dict[str, int | float] | None = None
    """The tuned field with its value; None in trials that do not tune."""


def planned(study: Study, base: Mapping[str, object]) -> list[Point]:
    """Returns the trials of a study in their order: tuning trials, then the others seed by seed.

    Args:
      study: The grid.
      base: The resolved experiment that it varies.

    Raises:
      FieldError: The tuned field is not a number.
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
    # Images that are held out for tuning are trained on by the trials that count, which are
    # evaluated on the test images.
    path, _ = held_out(base)
    whole = {path: 0.0} if study.tune and path else {}
    counted = [_point(axis, place, seed, whole) for seed in study.seeds for place in places]
    return tuning + counted


def study_file(study: Study, *, name: str, trials: int, **fields: Any) -> StudyFile:
    """Returns the plan of a study as it is written to ``study.json``.

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


def held_out(base: Mapping[str, object]) -> tuple[str | None, float]:
    """Returns the dotted path and the value of the share of training images that are held out.

    Above 0, models are evaluated on these in place of the test images. Data without such a field
    give ``(None, 0.0)``.

    Args:
      base: A resolved experiment.
    """
    data = base["data"]
    split = data.get("split") if isinstance(data, dict) else None
    for path, fields in (("data.validation", data), ("data.split.validation", split)):
        if isinstance(fields, dict) and "validation" in fields:
            return path, fields["validation"]
    return None, 0.0


def applied(table: Mapping[str, object], settings: Mapping[str, object]) -> JsonObject:
    """Returns nested tables with dotted fields set; a number in a path is an index of a list."""
    changed = dict(table)
    for dotted, value in settings.items():
        name, *rest = dotted.split(".")
        changed[name] = _with(changed.get(name), rest, value)
    return changed


def _with(table: object, path: list[str], value: object) -> object:
    """Returns ``table`` with ``value`` at ``path``, making missing tables on the way."""
    if not path:
        return value
    name, *rest = path
    if isinstance(table, list) and name.isdecimal() and int(name) < len(table):
        index = int(name)
        return [*table[:index], _with(table[index], rest, value), *table[index + 1 :]]
    fields = table if isinstance(table, dict) else {}
    return {**fields, name: _with(fields.get(name), rest, value)}


def _point(
    axis: str, place: Place, seed: int, more: Mapping[str, object] | None = None, suffix: str = ""
) -> Point:
    value = "" if place.axis_value is None else f"-{axis}-{place.axis_value}"
    name = _slug(f"{place.arm}{value}{suffix}-seed-{seed}")
    settings = {**place.settings, **(more or {}), "seed": seed}
    return Point(name, place.arm, place.axis_value, seed, settings)


def _candidates(tune: Tune, base: Mapping[str, object], place: Place) -> list[int] | list[float]:
    """Returns the values of the tuned field at a place: integers, or rounded to six digits."""
    value: object = applied(base, place.settings)
    for name in tune.field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    match value:
        case bool():
            pass
        case int():
            return [round(value * factor) for factor in tune.factors]
        case float():
            return [float(f"{value * factor:.6g}") for factor in tune.factors]
    problem = f"is {tune.field!r}, whose value is {value!r}; it must be the path of a number"
    raise FieldError(("tune.field", problem))


def _repeated(entries: Sequence[T]) -> list[T]:
    """Returns the entries that occurred before."""
    seen: set[T] = set()
    return [entry for entry in entries if entry in seen or seen.add(entry)]


def _contains(outer: str, inner: str) -> bool:
    """Returns whether the field at the path ``inner`` is a part of that at ``outer``."""
    return inner.startswith(f"{outer}.")


def _last(path: str) -> str:
    """Returns the last part of a path, with indices of a list after it: ``widths.1``."""
    return re.sub(r".*?([^.]+(\.\d+)*)$", r"\1", path)


def _slug(text: str) -> str:
    """Returns ``text`` as a part of a file's name."""
    return re.sub(r"[^a-z0-9._-]", "-", text.lower())
