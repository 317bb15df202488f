"""Messages for invalid configs: one line a field, with its dotted path and valid values."""

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Any

import pydantic

from fpnlab.config.claims import near
from fpnlab.config.experiment import Experiment
from fpnlab.config.hints import field_paths, spec_members
from fpnlab.data.dataset import check_pixels
from fpnlab.spec import SpecError
from fpnlab.tasks.kinds import task_kind

MINIMAL = {
    "data": 'data = { kind = "scenes" }',
    "model": 'model = { classes = 4, backbone = "resnet18", neck = { max_level = 5 } }',
    "train": "train = { examples = 4096, batch_size = 32, learning_rate = 0.1 }",
}
"""The least that a required table needs, as TOML."""


def number_faults(value: Any, path: str = "") -> Iterator[str]:
    """Yields the numbers that TOML can say and no field can mean: inf and nan."""
    match value:
        case dict():
            for name, inner in value.items():
                yield from number_faults(inner, f"{path}.{name}".lstrip("."))
        case list():
            for i, inner in enumerate(value):
                yield from number_faults(inner, f"{path}.{i}")
        case float() if not math.isfinite(value):
            yield f"{path}: is {value}; it must be a finite number"


def field_faults(error: pydantic.ValidationError, table: Any, kind: type) -> list[str]:
    """Returns the faults of a table that is no ``kind``, each field by itself."""
    lines = [
        line
        for fault in error.errors(include_url=False)
        for line in (_line(part, table, kind) for part in _by_field(fault))
    ]
    return [line for line in dict.fromkeys(lines) if line]


def combination_faults(experiment: Experiment) -> Iterator[str]:
    """Yields what is wrong with fields of an experiment that are each right by themselves.

    The shapes of a batch are taken through the model and its loss, without computing anything.
    """
    if wrong := list(_misfits(experiment)):
        yield from wrong
        return
    names = experiment.class_names
    if experiment.model.classes != len(names):
        yield (
            f"model.classes: is {experiment.model.classes}, but the data has {len(names)} classes "
            f"({', '.join(names)}); set model.classes = {len(names)}"
        )
    train, evaluate = experiment.train, experiment.evaluate
    held = {
        "train.batch_size": train.batch_size,
        "evaluate.batch_size": evaluate.batch_size,
        "evaluate.population_examples": evaluate.population_examples,
    }
    for path, images in held.items():
        try:
            check_pixels(path, images, experiment.image_size)
        except ValueError as error:
            yield str(error)
    name = "batch_size" if train.micro_batch is None else "micro_batch"
    images = getattr(train, name)
    try:
        experiment.task.check_shapes(experiment.image_size, images)
    except ValueError as error:
        yield f"model: {error} (at train.{name} = {images})"


def _by_field(fault):
    """Yields an error of each field that a spec found invalid; any other error as it is."""
    cause = fault.get("ctx", {}).get("error")
    if not isinstance(cause, SpecError):
        yield fault
        return
    for name, wrong in cause.invalid:
        yield {"type": "value_error", "loc": (*fault["loc"], name), "msg": wrong}


def _line(fault, table, kind):
    """Returns what is wrong and what would be right; None for a member that was not meant."""
    path, owner, hint, given = [], None, kind, table
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
    return _message(".".join(path), owner, fault, kind)


def _wrong_kind(where, given, members):
    kinds = [member.kind for member in members]
    if not isinstance(given, dict):
        return f"{where}: is {given!r}; it must be a table with a kind: {', '.join(kinds)}"
    if "kind" not in given:
        known = [f.name for member in members for f in dataclasses.fields(member)]
        known = list(dict.fromkeys(known))
        for name in given:
            if name not in known:
                return f"{where}.{name}: no such field{near(name, known)}"
        return f"{where}.kind: is required; these are known: {', '.join(kinds)}"
    if given["kind"] not in kinds:
        return f"{where}.kind: is {given['kind']!r}{near(str(given['kind']), kinds)}"
    return None


def _message(where, owner, fault, kind):
    match fault["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            names = [f.name for f in dataclasses.fields(owner)]
            name = where.rpartition(".")[2]
            elsewhere = [p for p in field_paths(kind) if p.rpartition(".")[2] == name]
            if where == name and elsewhere:
                return f"{where}: no such field; did you mean {' or '.join(elsewhere)}?"
            return f"{where}: no such field{near(name, names)}"
        case "missing":
            example = MINIMAL.get(where)
            return f"{where}: is required" + (f", e.g. {example}" if example else "")
        case "value_error":
            return f"{where}: {fault['msg'].removeprefix('Value error, ')}".removeprefix(": ")
        case _:
            expected = fault["msg"].removeprefix("Input should be ").replace("an object", "a table")
            return f"{where}: is {_shown(fault['input'])}; it must be {expected}"


def _shown(value):
    """Returns a value as Python writes it, long ones cut."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:60]}... ({len(text)} characters)"


def _misfits(experiment: Experiment) -> Iterator[str]:
    """Yields fields that belong to another task than the data."""
    task = task_kind(experiment.data)
    for field, kind in task.spec_kinds.items():
        value = getattr(experiment, field)
        if value is not None and value.kind != kind:
            yield (
                f"{field}.kind: is {value.kind!r}, but {experiment.data.kind} data have "
                f"{task.truth}; set {field}.kind = {kind!r}, or choose other data"
            )
    study = experiment.study
    if study is not None and study.metric not in task.metrics:
        yield (
            f"study.metric: is {study.metric!r}, but {experiment.data.kind} data have "
            f"{task.truth}; these are measured: {', '.join(task.metrics)}"
        )
