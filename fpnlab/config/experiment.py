"""TOML and overrides to one validated `Experiment`, and back."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import tomllib
from collections.abc import Callable, Iterable
from typing import Any, Literal

import pydantic

from fpnlab.config.claims import near
from fpnlab.config.hints import field_hint, spec_members, with_none
from fpnlab.config.messages import combination_faults, field_faults, number_faults
from fpnlab.config.study import Point, Study, applied, held_out, planned
from fpnlab.data.augmentation.classifier_augment import AugmentImages
from fpnlab.data.augmentation.detector_augment import Augment
from fpnlab.data.load import Data, LabelData
from fpnlab.data.sources.scenes import CLASS_NAMES, Scenes
from fpnlab.evaluate.average_precision import Evaluate
from fpnlab.nn.norm_layer import BatchNorm
from fpnlab.nn.resnet import STANDARD, ResNet, cifar_resnet, resnet
from fpnlab.spec import spec
from fpnlab.train.model_loss import Model
from fpnlab.train.objective import CrossEntropy, Objective
from fpnlab.train.step import Train

DETECTION = {"model": "detector", "objective": "detection", "augment": "detection"}
"""The kinds that images with boxes ask for."""
CLASSIFICATION = {
    "model": "classifier",
    "objective": "cross_entropy",
    "augment": "classification",
}
"""The kinds that images with a label each ask for."""


PRESETS: dict[str, Callable[[], ResNet]] = {
    **{f"resnet{layers}": functools.partial(resnet, layers, BatchNorm()) for layers in STANDARD},
    **{
        f"cifar_resnet{depth}": functools.partial(cifar_resnet, depth, norm=BatchNorm())
        for depth in (8, 14, 20, 32, 44, 56, 110)
    },
}
"""Published backbones by name, with batch norm; another norm is set by ``model.backbone.norm``."""


MEASURED_ONLY = ("question", "evaluate", "log_examples", "checkpoint_seconds", "study")
"""Fields that do not change the weights; nor does ``data.root``, where the data are."""


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
        table = tomllib.loads(_text(pathlib.Path(path)))
    except FileNotFoundError:
        near = ", ".join(sorted(str(p) for p in pathlib.Path("configs").glob("*.toml")))
        remedy = f"these are here: {near}" if near else "give the path of a TOML file"
        raise ConfigError(f"{path}: no such file; {remedy}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not a readable TOML file: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {error}") from None
    for dotted, text in overrides:
        dotted = _with_underscores(dotted)
        table = applied(table, {dotted: _value(text, dotted, table)})
    try:
        experiment = validate(table)
        if experiment.study:
            trials(experiment)
    except ConfigError as error:
        raise ConfigError(f"{path}:\n{error}") from None
    return experiment


def validate(table: dict[str, Any]) -> Experiment:
    """Returns the experiment in ``table``, checked as far as that goes without data or training.

    The text "none" is None, for which TOML has no word, where a field admits that. The kinds that
    follow from the data's, and the metric of a study, may be left out; a backbone may be one of
    `PRESETS` by its name.

    Raises:
      ConfigError: unknown fields, wrong types, impossible combinations; all of them.
    """
    try:
        table = with_none(_with_kinds(table), Experiment)
        faults = list(number_faults(table))
        text = json.dumps(table, default=str)
    except (RecursionError, ValueError) as error:  # A number of thousands of digits, e.g.
        raise ConfigError(f"a value that no field can have: {error}") from None
    try:
        # Strict, in JSON mode: "8" is no number, but a list may be a tuple.
        experiment = _adapter().validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        faults = dict.fromkeys(faults + field_faults(error, table, Experiment))
        raise ConfigError("\n".join(faults)) from None
    if faults := faults or list(combination_faults(experiment)):
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


def training_hash(experiment: Experiment) -> str:
    """Returns the SHA-256 of what decides the weights: all but `MEASURED_ONLY`."""
    text = json.dumps(_trained(resolved(experiment)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def same_training(there: Any, here: Any) -> bool:
    """Returns whether two resolved experiments, as JSON values, train the same weights."""
    return _trained(there) == _trained(here)


def _trained(table):
    kept = {name: value for name, value in table.items() if name not in MEASURED_ONLY}
    return kept | {"data": {k: v for k, v in table["data"].items() if k != "root"}}


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
    if isinstance(data, dict) and data.get("kind") == "cifar_binary":  # Its name until 0.1.
        data = data | {"kind": "cifar"}
        table = table | {"data": data}
    labelled = [member.kind for member in spec_members(LabelData)]
    classified = isinstance(data, dict) and data.get("kind") in labelled
    kinds = CLASSIFICATION if classified else DETECTION
    filled = {"objective": {}} | _with_preset(table)
    for field, kind in kinds.items():
        if isinstance(filled.get(field), dict):
            filled[field] = {"kind": kind} | filled[field]
    if classified and isinstance(table.get("study"), dict):
        filled["study"] = {"metric": "accuracy"} | table["study"]
    return filled


def _with_preset(table):
    """Returns ``table`` with the backbone that it names written out."""
    model = table.get("model")
    backbone = model.get("backbone") if isinstance(model, dict) else None
    if not isinstance(backbone, str):
        return table
    if backbone not in PRESETS:
        raise ConfigError(f"model.backbone: is {backbone!r}{near(backbone, list(PRESETS))}")
    written = pydantic.TypeAdapter(ResNet).dump_python(PRESETS[backbone](), mode="json")
    return table | {"model": model | {"backbone": written}}


def _with_underscores(dotted):
    """Returns a path whose fields may be written with hyphens; the names of arms keep theirs."""
    names = dotted.split(".")
    fields = [name.replace("-", "_") for name in names]
    if fields[:2] == ["study", "arms"]:
        return ".".join([*fields[:2], *names[2:3], *fields[3:]])
    return ".".join(fields)


def _text(path):
    """Returns the text of a TOML file, which may begin with a byte order mark."""
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("it is encoded as UTF-16; save it as UTF-8")
    return content.decode("utf-8-sig")


def _value(text, dotted, table):
    """Returns an override's value as TOML, or as text where it is none or its field wants text."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    hint = field_hint(Experiment, dotted.split("."), table)
    if hint is str and not isinstance(value, str):
        return text
    # The name of a kind stands for a table of that kind with its defaults.
    kinds = [member.kind for member in spec_members(hint) if hasattr(member, "kind")]
    return {"kind": value} if isinstance(value, str) and value in kinds else value
