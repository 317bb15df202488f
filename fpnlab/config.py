"""TOML and overrides to one validated `Experiment`, and back."""

import dataclasses
import difflib
import functools
import hashlib
import json
import pathlib
import tomllib
import types
import typing
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import pydantic

from fpnlab.data.augment import Augment
from fpnlab.data.scenes import CLASS_NAMES, Scenes
from fpnlab.data.voc import Voc
from fpnlab.evaluate.detection import Evaluate
from fpnlab.evaluate.population import grouped
from fpnlab.model.detector import Detector, apply_detector, init_detector
from fpnlab.study.plan import Study
from fpnlab.train.objective import Objective
from fpnlab.train.step import Train
from fpnlab.types import Mode, spec


class ConfigError(ValueError):
    """Everything that is wrong with a config, one fault a line."""

    exit_code = 2


@spec
class Experiment:
    """One training run, or with `study` a grid of them."""

    question: str = ""
    """What the experiment is to answer; heads the report."""
    seed: int = 0
    """Of the parameters, the data order and the augmentation."""
    data: Scenes | Voc
    """Images and boxes."""
    augment: Augment | None = None
    """Random views of the training images; none: the images as they are."""
    model: Detector
    """What is trained."""
    objective: Objective = Objective()
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


def load(path: str | pathlib.Path, overrides: Iterable[tuple[str, str]] = ()) -> Experiment:
    """Returns the experiment in a TOML file, with dotted fields overridden.

    Args:
      path: the file.
      overrides: pairs like ``("train.batch_size", "8")``; a value is read as TOML, or as text
        where it is none; ``none`` removes the field, so that its default holds.

    Raises:
      ConfigError: the file is missing or not TOML, or its experiment is refused; all faults at
        once, each with its dotted path.
    """
    try:
        table = tomllib.loads(pathlib.Path(path).read_text())
    except FileNotFoundError:
        near = sorted(str(p) for p in pathlib.Path("configs").glob("*.toml"))
        raise ConfigError(f"{path}: no such file; these are here: {', '.join(near)}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {error}") from None
    for dotted, text in overrides:
        _put(table, dotted.replace("-", "_"), _value(text))
    try:
        experiment = validate(table)
        if experiment.study:
            trials(experiment)
    except ConfigError as error:
        raise ConfigError(f"{path}:\n{error}") from None
    return experiment


def validate(table: dict[str, Any]) -> Experiment:
    """Returns the experiment in ``table``, checked as far as that goes without data or training.

    Raises:
      ConfigError: unknown fields, wrong types, impossible combinations; all of them.
    """
    try:
        # Strict, in JSON mode: "8" is no number, but a list may be a tuple.
        experiment = _adapter().validate_json(json.dumps(table, default=str), strict=True)
    except pydantic.ValidationError as error:
        raise ConfigError("\n".join(_faults(error))) from None
    if faults := list(_combinations(experiment)):
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
    """Returns the trials of a study, seed by seed, each checked like an experiment.

    Raises:
      ConfigError: there is no study, or trials are refused; all faults at once.
    """
    study = experiment.study
    if study is None:
        raise ConfigError("study: absent; a study needs a [study] table with values and arms")
    base = resolved(experiment) | {"study": None}
    found, faults = [], []
    for seed in study.seeds:
        for value in study.values:
            for arm, settings in study.arms.items():
                name = f"{arm}-{study.axis.rpartition('.')[2]}-{value}-seed-{seed}".lower()
                table = json.loads(json.dumps(base))
                for dotted, setting in {**settings, study.axis: value, "seed": seed}.items():
                    _put(table, dotted, setting)
                try:
                    found.append(Trial(name, arm, value, seed, validate(table)))
                except ConfigError as error:
                    faults += [f"{name}: {line}" for line in str(error).splitlines()]
    if faults:
        raise ConfigError("\n".join(faults))
    return found


def fields() -> list[tuple[str, str, str, str]]:
    """Returns path, type, default and meaning of every field, for the help of commands."""
    return list(_fields(Experiment, "", {}))


def _fields(kind, prefix, described):
    docs, hints = _field_docs(kind), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        path, hint = prefix + field.name, hints[field.name]
        if field.name == "kind":
            continue
        default = "required" if field.default is dataclasses.MISSING else _plain(field.default)
        members = [m for m in typing.get_args(hint) or (hint,) if dataclasses.is_dataclass(m)]
        meaning = docs[field.name]
        if hint in described:
            meaning += f" Its fields are those of {described[hint]}."
        yield path, _type_name(hint), default, meaning
        if members and hint not in described:
            described[hint] = path
            for member in members:
                for name, of, value, text in _fields(member, f"{path}.", described):
                    yield name, of, value, f"({member.kind}) {text}" if len(members) > 1 else text


@functools.cache
def _adapter():
    return pydantic.TypeAdapter(Experiment)


def _combinations(experiment):
    """Yields what is wrong with fields that are each right by themselves."""
    names = experiment.class_names
    if experiment.model.classes != len(names):
        yield (
            f"model.classes: is {experiment.model.classes}, but the data has {len(names)} classes "
            f"({', '.join(names)}); set model.classes = {len(names)}"
        )
    try:
        _trace(experiment.model, experiment.image_size, experiment.train.batch_size)
        if experiment.evaluate:
            grouped(experiment.model, experiment.train.batch_size)
    except ValueError as error:
        yield f"model: {error} (at train.batch_size = {experiment.train.batch_size})"


@functools.lru_cache(maxsize=256)
def _trace(detector, image_size, batch_size):
    """Runs the shapes of one training forward pass through the model."""
    params, state = jax.eval_shape(lambda: init_detector(jax.random.key(0), detector))
    images = jax.ShapeDtypeStruct((batch_size, *image_size, 3), jnp.float32)
    apply = functools.partial(apply_detector, detector, mode=Mode.TRAIN)
    jax.eval_shape(lambda p, s, x: apply(p, s, x), params, state, images)


def _put(table, dotted, value):
    *parents, last = dotted.split(".")
    for name in parents:
        if not isinstance(table.get(name), dict):
            table[name] = {}
        table = table[name]
    if value is None:
        table.pop(last, None)
    else:
        table[last] = value


def _value(text):
    if text.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _faults(error):
    """Returns one line a fault, without those of union members that were not meant."""
    found = error.errors(include_url=False, include_context=False)
    wrong_kind = {e["loc"][:-1] for e in found if e["loc"][-1] == "kind"}
    lines = []
    for fault in found:
        loc = fault["loc"]
        other = any(loc[: len(branch)] == branch for branch in wrong_kind)
        if not other:
            lines.append(_line(loc, fault))
    for union in {branch[:-1] for branch in wrong_kind}:
        members = [m for m in _members(union) if (*union, m.__name__) not in wrong_kind]
        if not members:
            kinds = [m.kind for m in _members(union)]
            given = next(
                f["input"] for f in found if f["loc"][:-2] == union and f["loc"][-1] == "kind"
            )
            lines.append(f"{_dotted(union)}.kind: is {given!r}{_near(str(given), kinds)}")
    return lines


def _line(loc, fault):
    where, given = _dotted(loc), fault["input"]
    match fault["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            names = [f.name for f in dataclasses.fields(_owner(loc[:-1]))]
            return f"{where}: no such field{_near(str(loc[-1]), names)}"
        case "missing":
            return f"{where}: is required"
        case "value_error":
            return f"{where}: {fault['msg'].removeprefix('Value error, ')}"
        case _:
            message = fault["msg"].removeprefix("Input should be ")
            return f"{where}: is {given!r}; it must be {message}"


def _near(given, names):
    close = difflib.get_close_matches(given, names, n=1)
    choice = f"the nearest is {close[0]!r}; all" if close else "these are known"
    return f"; {choice}: {', '.join(names)}"


def _dotted(loc):
    return ".".join(str(part) for part in loc if not str(part)[:1].isupper()) or "experiment"


def _owner(loc):
    """Returns the dataclass at a location of pydantic's, which names union members by class."""
    owner = Experiment
    for part in loc:
        if dataclasses.is_dataclass(owner) and part in typing.get_type_hints(owner):
            owner = typing.get_type_hints(owner)[part]
            members = [m for m in typing.get_args(owner) if dataclasses.is_dataclass(m)]
            owner = members[0] if len(members) == 1 else owner
        else:
            owner = next((m for m in typing.get_args(owner) if m.__name__ == part), owner)
    return owner


def _members(loc):
    return [m for m in typing.get_args(_owner(loc)) if dataclasses.is_dataclass(m)]


def _field_docs(kind):
    import ast
    import inspect
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    docs = {}
    for statement, after in zip(body, body[1:]):
        if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
            docs[statement.target.id] = inspect.cleandoc(after.value.value).split("\n\n")[0]
    return {f.name: docs.get(f.name, "") for f in dataclasses.fields(kind)}


def _type_name(hint):
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return "|".join(_type_name(m) for m in typing.get_args(hint) if m is not type(None))
    if typing.get_origin(hint):
        inner = ",".join("..." if a is ... else _type_name(a) for a in typing.get_args(hint))
        name = hint.__origin__.__name__.replace("tuple", "list")
        return f"{name}[{inner}]"
    return getattr(hint, "kind", hint.__name__).lower()


def _plain(value):
    if dataclasses.is_dataclass(value):
        return getattr(value, "kind", "see below")
    return "none" if value is None else str(list(value) if isinstance(value, tuple) else value)
