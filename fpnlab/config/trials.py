"""The trials of a study: each a name, a place in the grid, and an experiment of its own."""

import dataclasses
import json
from typing import Any, Literal

from fpnlab.config.experiment import Experiment
from fpnlab.config.study import Point, applied, held_out, planned
from fpnlab.config.validate import config_hash, resolved, validate
from fpnlab.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Trial:
    """One cell of a study, with its own experiment."""

    name: str
    arm: str
    axis_value: Any
    seed: int
    experiment: Experiment
    split: Literal["test", "validation"] = "test"
    """The images it is measured on."""
    tuned: dict[str, Any] | None = None
    """The tuned field with its value, where the study tunes one."""

    @property
    def cell(self) -> str:
        """Arm and axis value, which the seeds of a cell have in common."""
        return json.dumps([self.arm, self.axis_value])


def trials(experiment: Experiment) -> list[Trial]:
    """Returns the trials of a study in their order, each checked like an experiment.

    Raises:
      ConfigError: there is no study, or trials are refused; all faults at once.
    """
    if faults := list(_untunable(experiment)):
        raise ConfigError("\n".join(faults))
    base, found, built = unstudied(experiment), {}, {}
    digests, equal = {}, {}
    data = {"validation": base.data, "test": counted(experiment).data}
    for point in points(experiment):
        # Trials that differ in their seed alone are one experiment to check.
        key = json.dumps(point.settings | {"seed": None}, sort_keys=True)
        if key not in built:
            built[key] = _checked(base, point, data[point.split])
            if isinstance(built[key], Experiment):
                digests[key] = config_hash(dataclasses.replace(built[key], seed=0))
        if isinstance(built[key], ConfigError):
            faults += [f"{point.name}: {line}" for line in str(built[key]).splitlines()]
            continue
        first = equal.setdefault((point.split, digests[key], point.seed), point.name)
        if first != point.name:
            faults.append(
                f"{point.name}: the same experiment as {first}; leave one out, or let its arm or "
                "axis set a field that differs"
            )
        if point.name in found:
            faults.append(f"{point.name}: two trials have this name; rename an arm")
        if len(point.name) > 200:
            faults.append(f"{point.name}: a name of a folder; give the arm a shorter one")
        found[point.name] = _trial(point, dataclasses.replace(built[key], seed=point.seed))
    if faults:
        raise ConfigError("\n".join(faults))
    return list(found.values())


def points(experiment: Experiment) -> list[Point]:
    """Returns the trials of a study in their order, not yet checked.

    Raises:
      ConfigError: there is no study, or what it tunes is no number.
    """
    if experiment.study is None:
        raise ConfigError("study: absent; a study needs a [study] table with axes and arms")
    try:
        return planned(experiment.study, resolved(unstudied(experiment)))
    except ValueError as error:
        raise ConfigError(f"study: {error}") from None


def unstudied(experiment: Experiment) -> Experiment:
    """Returns the experiment that a study varies."""
    return dataclasses.replace(experiment, study=None)


def counted(experiment: Experiment) -> Experiment:
    """Returns ``experiment`` with the data of its trials that count: nothing is held out to tune.

    Raises:
      ConfigError: it is refused.
    """
    path, _ = held_out(resolved(experiment))
    tunes = experiment.study is not None and experiment.study.tune is not None
    return varied(experiment, {path: 0.0}) if tunes and path else experiment


def trial(experiment: Experiment, point: Point, tuned: dict[str, Any] | None = None) -> Trial:
    """Returns one trial of a study, with a ``tuned`` field where it was chosen.

    Raises:
      ConfigError: the trial is refused.
    """
    settings = point.settings | (tuned or {})
    built = varied(unstudied(experiment), settings)
    return _trial(dataclasses.replace(point, tuned=tuned or point.tuned), built)


def single(experiment: Experiment, name: str) -> Trial:
    """Returns an experiment without its study as a trial of its own."""
    alone = unstudied(experiment)
    return Trial(name, name, alone.train.batch_size, alone.seed, alone)


def varied(experiment: Experiment, settings: dict[str, Any]) -> Experiment:
    """Returns ``experiment`` with dotted fields set, checked.

    Raises:
      ConfigError: it is refused.
    """
    return validate(applied(resolved(experiment), settings))


def _trial(point, experiment):
    place = (point.name, point.arm, point.axis_value, point.seed)
    return Trial(*place, experiment, point.split, point.tuned)


def _checked(base, point, data):
    """Returns the experiment of a trial, or what is wrong with it."""
    try:
        built = varied(base, point.settings)
    except ConfigError as error:
        return error
    if built.data != data:
        return ConfigError("data: all trials of a study share its data; do not change it")
    return built


def _untunable(experiment):
    """Yields why there is nothing to tune on, if so."""
    if not (experiment.study and experiment.study.tune):
        return
    path, share = held_out(resolved(experiment))
    if not share:
        remedy = f"set {path} above 0" if path else "leave study.tune out"
        yield f"study.tune: the data hold no images out for validation; {remedy}"
