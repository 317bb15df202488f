"""TOML and overrides to one validated `Experiment`, and back."""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import tomllib
import typing
from collections.abc import Iterable
from typing import Any, Literal

import jax
import numpy as np
import pydantic

from fpnlab.data.augment import Augment
from fpnlab.data.augment_images import AugmentImages
from fpnlab.data.load import Data, LabelData
from fpnlab.data.scenes import CLASS_NAMES, Scenes
from fpnlab.evaluate.detection import Evaluate
from fpnlab.model.detector import (
    Detector,
    apply_detector,
    detect,
    detector_anchors,
    init_detector,
)
from fpnlab.study.plan import (
    ClassificationMetric,
    DetectionMetric,
    Point,
    Study,
    applied,
    held_out,
    planned,
)
from fpnlab.study.rules import near
from fpnlab.train.objective import CrossEntropy, Objective, detection_loss
from fpnlab.train.step import Train, grouped_for
from fpnlab.train.task import Model, init_model, model_loss
from fpnlab.types import Batch, LabelledBatch, Mode, spec

DETECTION = {"model": "detector", "objective": "detection", "augment": "detection"}
"""The kinds that images with boxes ask for."""
CLASSIFICATION = {
    "model": "classifier",
    "objective": "cross_entropy",
    "augment": "classification",
}
"""The kinds that images with a label each ask for."""


class ConfigError(ValueError):
    """Everything that is wrong with a config, one fault a line."""

    exit_code = 2


@spec
class Experiment:
    """One training run, or with `study` a grid of them.

    The kinds of `model`, `objective` and `augment` are those of the data's task.
    """

    question: str = ""
    """What the experiment is to answer; heads the report."""
    seed: int = 0
    """Of the parameters, the data order and the augmentation."""
    data: Data
    """Images, with boxes or with a label each."""
    augment: Augment | AugmentImages | None = None
    """Random views of the training images; none: the images as they are."""
    model: Model
    """What is trained."""
    objective: Objective | CrossEntropy = Objective()
    """What it is trained for."""
    train: Train
    """How it is trained."""
    evaluate: Evaluate = Evaluate()
    """How it is measured."""
    log_examples: int = 256
    """Examples between two records in metrics.jsonl."""
    checkpoint_seconds: float = 60.0
    """Seconds between two checkpoints."""
    study: Study | None = None
    """The grid; none: a single run."""

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be at least 0 and below 2**32")
        if self.log_examples < 1 or self.checkpoint_seconds < 0:
            raise ValueError(
                f"log_examples is {self.log_examples} and checkpoint_seconds "
                f"{self.checkpoint_seconds}; they must be at least 1 and 0"
            )

    @property
    def kinds(self) -> dict[str, str]:
        """The kinds that the data ask for, by field."""
        return CLASSIFICATION if isinstance(self.data, LabelData) else DETECTION

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the data's classes."""
        return CLASS_NAMES if isinstance(self.data, Scenes) else self.data.class_names

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, pixels."""
        size = self.data.image_size
        return (size, size) if isinstance(size, int) else size


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
        """What the seeds of one arm and axis value have in common."""
        return json.dumps([self.arm, self.axis_value])


def load(path: str | pathlib.Path, overrides: Iterable[tuple[str, str]] = ()) -> Experiment:
    """Returns the experiment in a TOML file, with dotted fields overridden.

    Args:
      path: the file.
      overrides: pairs like ``("train.batch_size", "8")``; a value is read as TOML, or as text
        where it is none.

    Raises:
      ConfigError: the file is missing or not TOML, or its experiment is refused; all faults at
        once, each with its dotted path.
    """
    try:
        table = tomllib.loads(pathlib.Path(path).read_text())
    except FileNotFoundError:
        near = ", ".join(sorted(str(p) for p in pathlib.Path("configs").glob("*.toml")))
        remedy = f"these are here: {near}" if near else "give the path of a TOML file"
        raise ConfigError(f"{path}: no such file; {remedy}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {error}") from None
    for dotted, text in overrides:
        table = applied(table, {dotted.replace("-", "_"): _value(text)})
    try:
        experiment = validate(table)
        if experiment.study:
            trials(experiment)
    except ConfigError as error:
        raise ConfigError(f"{path}:\n{error}") from None
    return experiment


def validate(table: dict[str, Any]) -> Experiment:
    """Returns the experiment in ``table``, checked as far as that goes without data or training.

    The text "none" is None, for which TOML has no word (but a ``kind`` may have that name). The
    kinds that follow from the data's, and the metric of a study, may be left out.

    Raises:
      ConfigError: unknown fields, wrong types, impossible combinations; all of them.
    """
    table = _with_kinds(_with_none(table))
    faults = list(_not_finite(table))
    try:
        # Strict, in JSON mode: "8" is no number, but a list may be a tuple.
        experiment = _adapter().validate_json(json.dumps(table, default=str), strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError("\n".join(faults + _faults(error, table))) from None
    if faults := faults or list(_combinations(experiment)):
        raise ConfigError("\n".join(faults))
    return experiment


def resolved(experiment: Experiment) -> dict[str, Any]:
    """Returns every field of ``experiment``, defaults included, as JSON values."""
    return _adapter().dump_python(experiment, mode="json")


def read_run(folder: pathlib.Path) -> Experiment:
    """Returns the experiment of a run folder.

    Raises:
      ConfigError: the folder has no ``config.json``, or one that is no experiment.
    """
    path = folder / "config.json"
    try:
        return validate(json.loads(path.read_text())["experiment"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ConfigError) as error:
        raise ConfigError(f"{path}: not the config of a run ({error})") from None


def config_hash(experiment: Experiment) -> str:
    """Returns the SHA-256 of the resolved experiment, as hexadecimal digits."""
    text = json.dumps(resolved(experiment), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def trials(experiment: Experiment) -> list[Trial]:
    """Returns the trials of a study in their order, each checked like an experiment.

    Raises:
      ConfigError: there is no study, or trials are refused; all faults at once.
    """
    if faults := list(_untunable(experiment)):
        raise ConfigError("\n".join(faults))
    base, found, built = unstudied(experiment), {}, {}
    data = {"validation": base.data, "test": counted(experiment).data}
    for point in points(experiment):
        # Trials that differ in their seed alone are one experiment to check.
        key = json.dumps(point.settings | {"seed": None}, sort_keys=True)
        if key not in built:
            built[key] = _checked(base, point, data[point.split])
        if isinstance(built[key], ConfigError):
            faults += [f"{point.name}: {line}" for line in str(built[key]).splitlines()]
            continue
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


@functools.cache
def _adapter():
    return pydantic.TypeAdapter(Experiment)


def _with_kinds(table):
    """Returns ``table`` with what follows from the kind of its data, where it says nothing."""
    data = table.get("data")
    labelled = {member.kind for member in spec_members(LabelData)}
    classified = isinstance(data, dict) and data.get("kind") in labelled
    kinds = CLASSIFICATION if classified else DETECTION
    filled = {"objective": {}} | table
    for field, kind in kinds.items():
        if isinstance(filled.get(field), dict):
            filled[field] = {"kind": kind} | filled[field]
    if classified and isinstance(table.get("study"), dict):
        filled["study"] = {"metric": "accuracy"} | table["study"]
    return filled


def _combinations(experiment):
    """Yields what is wrong with fields that are each right by themselves."""
    if wrong := list(_misfits(experiment)):
        yield from wrong
        return
    names = experiment.class_names
    if experiment.model.classes != len(names):
        yield (
            f"model.classes: is {experiment.model.classes}, but the data has {len(names)} classes "
            f"({', '.join(names)}); set model.classes = {len(names)}"
        )
    batch_size = experiment.train.batch_size
    model = grouped_for(experiment.train, experiment.model)
    trace = _trace_detector if isinstance(model, Detector) else _trace_classifier
    try:
        trace(model, experiment.objective, experiment.image_size, batch_size)
    except ValueError as error:
        yield f"model: {error} (at train.batch_size = {batch_size})"


def _misfits(experiment):
    """Yields what belongs to another task than the data."""
    classified = isinstance(experiment.data, LabelData)
    what = "a label each" if classified else "boxes"
    for field, kind in experiment.kinds.items():
        value = getattr(experiment, field)
        if value is not None and value.kind != kind:
            yield (
                f"{field}.kind: is {value.kind!r}, but {experiment.data.kind} data have {what}; "
                f"set {field}.kind = {kind!r}, or choose other data"
            )
    if (study := experiment.study) is not None:
        known = typing.get_args(ClassificationMetric if classified else DetectionMetric)
        if study.metric not in known:
            yield (
                f"study.metric: is {study.metric!r}, but {experiment.data.kind} data have {what}; "
                f"these are measured: {', '.join(known)}"
            )


@functools.lru_cache(maxsize=256)
def _trace_classifier(classifier, objective, image_size, batch_size):
    """Runs the shapes of a batch through the model and its loss."""
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=np.int32)
    batch = LabelledBatch(
        images=shape((batch_size, *image_size, 3)),
        labels=shape((batch_size,)),
        index=shape((batch_size,)),
    )

    def run(batch):
        key = jax.random.key(0)
        params, state = init_model(key, classifier)
        return model_loss(
            classifier, objective, params, state, batch, Mode.TRAIN, precision="float32", key=key
        )

    jax.eval_shape(run, batch)


@functools.lru_cache(maxsize=256)
def _trace_detector(detector, objective, image_size, batch_size):
    """Runs the shapes of a batch through the model, its loss and its detections."""
    anchors = detector_anchors(detector, *image_size)
    batch = Batch(
        images=np.zeros((1, *image_size, 3), np.float32),
        boxes=np.zeros((1, 1, 4), np.float32),
        classes=np.zeros((1, 1), np.int32),
        valid=np.zeros((1, 1), bool),
        extent=np.zeros((1, 2), np.float32),
        index=np.zeros(1, np.int32),
    )
    shape = lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype)

    def run(batch):
        key = jax.random.key(0)
        params, state = init_detector(key, detector)
        output, _ = apply_detector(
            detector, params, state, batch.images, Mode.TRAIN, extent=batch.extent, key=key
        )
        loss, _ = detection_loss(objective, output, anchors, batch)
        return loss, detect(detector, output, anchors, batch.extent)

    jax.eval_shape(run, jax.tree.map(shape, batch))


def _value(text):
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _with_none(value):
    match value:
        case dict():
            is_kind = lambda name: name.rpartition(".")[2] == "kind"
            return {k: v if is_kind(k) else _with_none(v) for k, v in value.items()}
        case list() | tuple():
            return [_with_none(inner) for inner in value]
        case "none":
            return None
    return value


def _not_finite(value, path=""):
    """Yields the numbers that TOML can say and no field can mean: inf and nan."""
    match value:
        case dict():
            for name, inner in value.items():
                yield from _not_finite(inner, f"{path}.{name}".lstrip("."))
        case list():
            for i, inner in enumerate(value):
                yield from _not_finite(inner, f"{path}.{i}")
        case float() if not math.isfinite(value):
            yield f"{path}: is {value}; it must be a finite number"


def _faults(error, table):
    """Returns one line a fault, without those of union members that were not meant."""
    lines = [
        _line(fault, table) for fault in error.errors(include_url=False, include_context=False)
    ]
    return [line for line in dict.fromkeys(lines) if line]


def _line(fault, table):
    """Returns what is wrong and what would be right; None for a member that was not meant."""
    path, owner, hint, given = [], None, Experiment, table
    for part in fault["loc"]:
        members = {m.__name__: m for m in spec_members(hint)}
        options = [m for m in typing.get_args(hint) if m is not type(None)]
        if typing.get_origin(hint) is tuple and isinstance(part, int):
            path.append(str(part))
            hint = options[0]
            given = given[part] if isinstance(given, list) and part < len(given) else None
        elif len(members) > 1 and part in members:  # pydantic's step into a member of a union
            if wrong := _wrong_kind(".".join(path), given, list(members.values())):
                return wrong
            hint = members[part]
            if given["kind"] != hint.kind:
                return None
        elif len(members) == 1 and len(options) > 1 and typing.get_origin(hint) is not tuple:
            # A table, or something that is none: only one of the two was meant.
            if isinstance(given, dict) != (part in members):
                return None
            hint = members.get(part)
        else:
            path.append(str(part))
            owner = next(iter(members.values()), None)
            hint = typing.get_type_hints(owner).get(part) if owner else None
            given = given.get(part) if isinstance(given, dict) else None
    return _message(".".join(path), owner, fault)


def _wrong_kind(where, given, members):
    kinds = [member.kind for member in members]
    if not isinstance(given, dict):
        return f"{where}: is {given!r}; it must be a table with a kind: {', '.join(kinds)}"
    if "kind" not in given:
        return f"{where}.kind: is required; these are known: {', '.join(kinds)}"
    if given["kind"] not in kinds:
        return f"{where}.kind: is {given['kind']!r}{near(str(given['kind']), kinds)}"
    return None


def _message(where, owner, fault):
    match fault["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            names = [f.name for f in dataclasses.fields(owner)]
            return f"{where}: no such field{near(where.rpartition('.')[2], names)}"
        case "missing":
            return f"{where}: is required"
        case "value_error":
            return f"{where}: {fault['msg'].removeprefix('Value error, ')}".removeprefix(": ")
        case _:
            expected = fault["msg"].removeprefix("Input should be ").replace("an object", "a table")
            return f"{where}: is {fault['input']!r}; it must be {expected}"


def spec_members(hint: Any) -> list[Any]:
    """Returns the dataclasses that a type admits."""
    return [m for m in typing.get_args(hint) or (hint,) if dataclasses.is_dataclass(m)]
