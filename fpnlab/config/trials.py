"""The trials of a study, each with its place in the grid and its validated experiment."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Literal

from fpnlab.config.experiment import Experiment
from fpnlab.config.study import Point, applied, held_out, planned
from fpnlab.config.validate import config_hash, resolved, validate
from fpnlab.data.load_data import Data
from fpnlab.errors import ConfigError
from fpnlab.records.json_files import AxisValue, JsonObject
from fpnlab.spec import SpecError

LONGEST_NAME = 200
"""Characters of a trial's name at most, which is also that of its folder."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training run of a study."""

    name: str
    """Name of the trial and of its folder."""
    arm: str
    """Name of the arm, with the values of the axes after the first."""
    axis_value: AxisValue
    """Label of the value of the first axis; None: the axis does not apply to the arm."""
    seed: int
    """Seed of initial parameters and data order."""
    experiment: Experiment
    """The experiment without its study."""
    split: Literal["test", "validation"] = "test"
    """Images that it is evaluated on."""
    tuned: dict[str, int | float] | None = None
    """The tuned field with its value; None where the study does not tune."""

    @property
    def cell(self) -> str:
        """Arm and axis value as JSON text; the trials of a cell differ in their seed."""
        return json.dumps([self.arm, self.axis_value])


def trials(experiment: Experiment) -> list[Trial]:
    """Returns the trials of a study in their order, each validated like an experiment.

    Raises:
      ConfigError: There is no study, or trials are invalid; all errors at once.
    """
    if errors := list(_untunable(experiment)):
        raise ConfigError("\n".join(errors))
    base = unstudied(experiment)
    data = {"validation": base.data, "test": counted(experiment).data}
    found: dict[str, Trial] = {}
    built: dict[str, Experiment | ConfigError] = {}
    digests: dict[str, str] = {}
    equal: dict[tuple[str, str, int], str] = {}
    for point in points(experiment):
        # Trials that differ in their seed alone are one experiment: validating traces the model.
        key = json.dumps(point.settings | {"seed": None}, sort_keys=True)
        if key not in built:
            built[key] = _validated(base, point, data[point.split])
        one = built[key]
        if isinstance(one, ConfigError):
            errors += [f"{point.name}: {line}" for line in str(one).splitlines()]
            continue
        if key not in digests:
            digests[key] = config_hash(dataclasses.replace(one, seed=0))
        first = equal.setdefault((point.split, digests[key], point.seed), point.name)
        if first != point.name:
            errors.append(
                f"{point.name}: the same experiment as {first}; remove one of them, or let its arm "
                "or axis set a field that differs"
            )
        if point.name in found:
            errors.append(f"{point.name}: two trials have this name; rename an arm")
        if len(point.name) > LONGEST_NAME:
            errors.append(
                f"{point.name}: the name has {len(point.name)} characters; it must have at most "
                f"{LONGEST_NAME}, because the trial's folder has it; shorten the name of the arm"
            )
        found[point.name] = _trial(point, dataclasses.replace(one, seed=point.seed))
    if errors:
        raise ConfigError("\n".join(errors))
    return list(found.values())


def points(experiment: Experiment) -> list[Point]:
    """Returns the planned trials of a study in their order, before they are validated.

    Raises:
      ConfigError: There is no study, or the tuned field is not a number.
    """
    if experiment.study is None:
        raise ConfigError("study: absent; a study needs a [study] table with axes and arms")
    try:
        return planned(experiment.study, resolved(unstudied(experiment)))
    except SpecError as error:
        lines = [f"study.{field}: {problem}" for field, problem in error.invalid]
        raise ConfigError("\n".join(lines)) from None


def unstudied(experiment: Experiment) -> Experiment:
    """Returns ``experiment`` without its study: the run that the study varies."""
    return dataclasses.replace(experiment, study=None)


def counted(experiment: Experiment) -> Experiment:
    """Returns ``experiment`` with the data of its trials that count.

    In a study that tunes, these train on the images that were held out for tuning, too.

    Raises:
      ConfigError: The experiment is invalid.
    """
    path, _ = held_out(resolved(experiment))
    tunes = experiment.study is not None and experiment.study.tune is not None
    return varied(experiment, {path: 0.0}) if tunes and path else experiment


def trial(
    experiment: Experiment, point: Point, tuned: dict[str, int | float] | None = None
) -> Trial:
    """Returns one trial of a study.

    Args:
      experiment: The experiment with its study.
      point: The planned trial.
      tuned: The tuned field with the value that tuning chose, if the study tunes.

    Raises:
      ConfigError: The trial is invalid.
    """
    settings = {**point.settings, **(tuned or {})}
    built = varied(unstudied(experiment), settings)
    return _trial(dataclasses.replace(point, tuned=tuned or point.tuned), built)


def single(experiment: Experiment, name: str) -> Trial:
    """Returns an experiment without its study as a single trial."""
    alone = unstudied(experiment)
    return Trial(name, name, alone.train.batch_size, alone.seed, alone)


def varied(experiment: Experiment, settings: JsonObject) -> Experiment:
    """Returns ``experiment`` with dotted fields set, validated.

    Raises:
      ConfigError: The changed experiment is invalid.
    """
    return validate(applied(resolved(experiment), settings))


def _trial(point: Point, experiment: Experiment) -> Trial:
    return Trial(
        point.name,
        point.arm,
        point.axis_value,
        point.seed,
        experiment,
        split=point.split,
        tuned=point.tuned,
    )


def _validated(base: Experiment, point: Point, data: Data) -> Experiment | ConfigError:
    """Returns the experiment of a trial, or its errors."""
    try:
        built = varied(base, point.settings)
    except ConfigError as error:
        return error
    if built.data != data:
        return ConfigError(
            "data: differs from the study's; all trials of a study share its data; remove data "
            "from its arms and axes"
        )
    return built


def _untunable(experiment: Experiment) -> Iterator[str]:
    """Yields an error if a study tunes without validation images."""
    if not (experiment.study and experiment.study.tune):
        return
    path, share = held_out(resolved(experiment))
    if not share:
        remedy = f"set {path} above 0" if path else "remove study.tune"
        yield f"study.tune: the data hold no images out for validation; {remedy}"
