"""Messages for invalid configs: one line for each field, with its dotted path."""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator

import pydantic
from pydantic_core import ErrorDetails

from fpnlab.config.experiment import Experiment
from fpnlab.config.field_error import unknown
from fpnlab.config.hints import field_paths, kind_of, spec_members
from fpnlab.data.dataset import too_many_pixels
from fpnlab.spec import SpecError
from fpnlab.tasks.kinds import task_kind

MINIMAL = {
    "data": 'data = { kind = "scenes" }',
    "model": 'model = { classes = 4, backbone = "resnet18", neck = { max_level = 5 } }',
    "train": "train = { examples = 4096, batch_size = 32, learning_rate = 0.1 }",
}
"""A minimal example of each required table, as TOML."""


UNIONS = (typing.Union, types.UnionType)


@dataclasses.dataclass(frozen=True)
class _Invalid:
    """One error of pydantic."""

    type: str
    """Name of the kind of error in pydantic."""
    path: tuple[int | str, ...]
    """Fields, places in lists, and names of the members of unions."""
    message: str
    given: object = None


def number_errors(value: object, path: str = "") -> Iterator[str]:
    """Yields an error for each inf and nan: numbers of TOML that no field can have."""
    match value:
        case dict():
            for name, inner in value.items():
                yield from number_errors(inner, f"{path}.{name}".lstrip("."))
        case list():
            for i, inner in enumerate(value):
                yield from number_errors(inner, f"{path}.{i}")
        case float() if not math.isfinite(value):
            yield f"{path}: is {value}; it must be a finite number"


def field_errors(error: pydantic.ValidationError, table: object, kind: type) -> list[str]:
    """Returns the errors of single fields as lines of text.

    Args:
      error: The errors that pydantic found.
      table: The invalid config.
      kind: The spec that it must be, `Experiment`.
    """
    lines = [
        line
        for details in error.errors(include_url=False)
        for line in (_line(invalid, table, kind) for invalid in _by_field(details))
    ]
    return [line for line in dict.fromkeys(lines) if line]


def combination_errors(experiment: Experiment, *, traced: bool) -> Iterator[str]:
    """Yields errors of fields that are each valid, but not together.

    Args:
      experiment: The experiment.
      traced: If true, the shapes of a batch are traced through the model and its loss, without
        computing anything.
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
    if experiment.initial_run is not None and experiment.model.weights is not None:
        yield "model.weights: is given, and so is initial_run; give one source of initial weights"
    train, evaluate = experiment.train, experiment.evaluate
    in_memory = {
        "train.batch_size": train.batch_size,
        "evaluate.batch_size": evaluate.batch_size,
        "evaluate.population_examples": evaluate.population_examples,
    }
    for path, images in in_memory.items():
        if problem := too_many_pixels(images, experiment.image_size):
            yield f"{path}: {problem}"
    if not traced:
        return
    name = "batch_size" if train.micro_batch is None else "micro_batch"
    images = getattr(train, name)
    try:
        experiment.task.check_shapes(experiment.image_size, images)
    except ValueError as error:
        yield f"model: {error} (at train.{name} = {images})"


def _by_field(details: ErrorDetails) -> Iterator[_Invalid]:
    """Yields an error of each field that a spec found invalid; any other error as it is."""
    cause = details.get("ctx", {}).get("error")
    if not isinstance(cause, SpecError):
        yield _Invalid(details["type"], details["loc"], details["msg"], details["input"])
        return
    for name, wrong in cause.invalid:
        yield _Invalid("value_error", (*details["loc"], name), wrong)


def _line(invalid: _Invalid, table: object, kind: type) -> str | None:
    """Returns the message of an error; None for an error of a member that was not meant.

    Of a union, pydantic reports the errors of every member, with the member's name in the path.
    The walk follows the path through the annotations and the given table side by side, so that
    only errors of the member that the table's ``kind`` names are kept, and that no name of a
    member is shown.
    """
    path: list[str] = []
    owner: type | None = None
    hint: object = kind
    given = table
    for part in invalid.path:
        members = {member.__name__: member for member in spec_members(hint)}
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if typing.get_origin(hint) is tuple and isinstance(part, int):
            path.append(str(part))
            hint = options[0]
            given = given[part] if isinstance(given, list) and part < len(given) else None
        elif len(members) > 1 and part in members:  # The step into a member of a union.
            if wrong := _wrong_kind(".".join(path), given, list(members.values())):
                return wrong
            hint = members[str(part)]
            if isinstance(given, dict) and given["kind"] != kind_of(hint):
                return None
        elif len(members) == 1 and len(options) > 1 and typing.get_origin(hint) is not tuple:
            # A union of a table and something else: the given value tells which one was meant.
            if isinstance(given, dict) != (part in members):
                return None
            hint = members.get(str(part))
        elif not members and (choice := _number_or_list(hint, given)):
            if part != choice[0]:
                return None
            hint = choice[1]
        else:
            path.append(str(part))
            owner = next(iter(members.values()), None)
            hint = typing.get_type_hints(owner).get(str(part)) if owner else None
            given = given.get(part) if isinstance(given, dict) else None
    return _message(".".join(path), owner, invalid, kind)


def _number_or_list(hint: object, given: object) -> tuple[str, object] | None:
    """Returns name and type of the member meant by ``given``; None for no union with a tuple."""
    options = typing.get_args(hint) if typing.get_origin(hint) in UNIONS else ()
    lists = [option for option in options if typing.get_origin(option) is tuple]
    others = [option for option in options if option not in (*lists, type(None))]
    if not lists or not others:
        return None
    return (str(lists[0]), lists[0]) if isinstance(given, list) else (others[0].__name__, others[0])


def _wrong_kind(where: str, given: object, members: list[type]) -> str | None:
    """Returns the error of a table whose ``kind`` is missing or unknown; None if it is known."""
    kinds = [kind_of(member) for member in members]
    if not isinstance(given, dict):
        expected = ", ".join(map(str, kinds))
        return f"{where}: is {given!r}; it must be a table whose kind is one of {expected}"
    if "kind" not in given:
        known = [field.name for member in members for field in dataclasses.fields(member)]
        known = list(dict.fromkeys(known))
        for name in given:
            if name not in known:
                return f"{where}.{name}: {unknown('field', name, known)}"
        return f"{where}.kind: is required; expected one of {', '.join(map(str, kinds))}"
    if given["kind"] not in kinds:
        return f"{where}.kind: {unknown('kind', given['kind'], kinds)}"
    return None


def _message(where: str, owner: type | None, invalid: _Invalid, kind: type) -> str:
    """Returns the message for an error of pydantic at the dotted path ``where``.

    Args:
      where: The path; empty for an error of the whole config.
      owner: The spec that has the field.
      invalid: The error.
      kind: The spec of the whole config.
    """
    match invalid.type:
        case "extra_forbidden" | "unexpected_keyword_argument":
            names = [] if owner is None else [field.name for field in dataclasses.fields(owner)]
            name = where.rpartition(".")[2]
            elsewhere = [path for path in field_paths(kind) if path.rpartition(".")[2] == name]
            if where == name and elsewhere:
                return f"{where}: unknown field {name!r}; did you mean {' or '.join(elsewhere)}?"
            return f"{where}: {unknown('field', name, names)}"
        case "missing":
            example = MINIMAL.get(where)
            return f"{where}: is required" + (f", e.g. {example}" if example else "")
        case "value_error":
            return f"{where}: {invalid.message.removeprefix('Value error, ')}".removeprefix(": ")
        case "too_long":
            limit = invalid.message.removeprefix("Tuple should ").replace(" after validation", "")
            return f"{where}: is {_shown(invalid.given)}; it must {limit}"
        case _:
            expected = invalid.message.removeprefix("Input should be ")
            expected = expected.replace("an object", "a table")
            return f"{where}: is {_shown(invalid.given)}; it must be {expected}"


def _shown(value: object) -> str:
    """Returns a value as Python writes it, cut if it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:60]}... ({len(text)} characters)"


def _misfits(experiment: Experiment) -> Iterator[str]:
    """Yields errors of specs and metrics that belong to another task than the data."""
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
            f"{task.truth}; expected one of {', '.join(task.metrics)}"
        )
