"""Tables of JSON values to a validated `Experiment`, and back; hashes of experiments."""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Collection

import pydantic

from fpnlab.config.experiment import Experiment
from fpnlab.config.field_error import unknown
from fpnlab.config.hints import spec_members, with_none
from fpnlab.config.messages import combination_errors, field_errors, number_errors
from fpnlab.data.load_data import Data
from fpnlab.errors import ConfigError
from fpnlab.nn.backbone import Backbone
from fpnlab.nn.published_networks import PRESETS
from fpnlab.records.json_files import JsonObject
from fpnlab.tasks.kinds import TASKS

DESCRIPTIVE = ("question", "log_examples", "checkpoint_seconds", "study")
"""Fields that change neither weights nor metrics; neither does ``data.root``, the data's folder."""
MEASURED_ONLY = (*DESCRIPTIVE, "evaluate")
"""Fields that do not change the weights."""


def validate_stored(table: JsonObject) -> Experiment:
    """Returns the experiment in a table that was validated before it was stored.

    The shapes of its model are not traced, and tables that differ in their seed alone share one
    validation, so that the configs of thousands of trials are read in seconds.

    Raises:
      ConfigError: As in ``validate``.
    """
    seed = table.get("seed")
    if type(seed) is not int or not 0 <= seed < 2**32:
        return validate(table, traced=False)
    try:
        text = json.dumps(table | {"seed": 0})  # In its order, which is that of the arms.
    except (TypeError, ValueError, RecursionError):
        return validate(table, traced=False)
    return dataclasses.replace(_parsed(text), seed=seed)


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> Experiment:
    return validate(json.loads(text), traced=False)


def validate(table: JsonObject, *, traced: bool = True) -> Experiment:
    """Returns the experiment in ``table``, validated without reading data or training.

    The text "none" is None, for which TOML has no word, where a field admits that. The kinds that
    follow from the data's, and the metric of a study, may be left out; a backbone may be one of
    `PRESETS` by its name.

    Args:
      table: The fields of an experiment.
      traced: If false, the shapes of the model are not traced, which takes most of the time; for a
        config that was validated before.

    Raises:
      ConfigError: Unknown fields, wrong types, impossible combinations; all of them.
    """
    try:
        table = with_none(_with_kinds(table), Experiment)
        errors = list(number_errors(table))
        text = json.dumps(table, default=str)
    except ConfigError:
        raise
    except (RecursionError, ValueError) as error:  # E.g. a number of thousands of digits.
        raise ConfigError(f"config: a value is too large to be read: {error}") from None
    try:
        # Strict, in JSON mode: "8" is not a number, but a list may be a tuple.
        experiment = _adapter().validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        errors = dict.fromkeys(errors + field_errors(error, table, Experiment))
        raise ConfigError("\n".join(errors)) from None
    if errors := errors or list(combination_errors(experiment, traced=traced)):
        raise ConfigError("\n".join(errors))
    return experiment


def resolved(experiment: Experiment) -> JsonObject:
    """Returns every field of ``experiment``, defaults included, as JSON values."""
    return _adapter().dump_python(experiment, mode="json")


def config_hash(experiment: Experiment) -> str:
    """Returns the SHA-256 of the resolved experiment, as hexadecimal digits."""
    return hash_of(resolved(experiment))


def training_hash(experiment: Experiment) -> str:
    """Returns the SHA-256 of the fields that decide the weights: all but `MEASURED_ONLY`."""
    return training_hash_of(resolved(experiment))


def hash_of(table: JsonObject) -> str:
    """Returns the SHA-256 of a resolved experiment, given as JSON values."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def training_hash_of(table: JsonObject) -> str:
    """Returns the `training_hash` of a resolved experiment, given as JSON values."""
    return hash_of(_without(MEASURED_ONLY, table))


def differences(old: object, new: object, prefix: str = "") -> list[str]:
    """Returns the dotted paths at which two JSON values differ, each with both values."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(set(old) | set(new))
        return [d for n in names for d in differences(old.get(n), new.get(n), f"{prefix}.{n}")]
    return [] if old == new else [f"{prefix.lstrip('.')} ({old} there, {new} here)"]


def same_training(there: JsonObject, here: JsonObject) -> bool:
    """Returns whether two resolved experiments, as JSON values, train the same weights."""
    return _without(MEASURED_ONLY, there) == _without(MEASURED_ONLY, here)


def same_result(there: JsonObject, here: JsonObject) -> bool:
    """Returns whether two resolved experiments, as JSON values, give the same metrics."""
    return _without(DESCRIPTIVE, there) == _without(DESCRIPTIVE, here)


def _without(fields: Collection[str], table: JsonObject) -> JsonObject:
    """Returns a resolved experiment without some fields and without the folder of its data."""
    kept = {name: value for name, value in table.items() if name not in fields}
    data = table["data"]
    parts = data.items() if isinstance(data, dict) else ()
    return kept | {"data": {name: value for name, value in parts if name != "root"}}


@functools.cache
def _adapter() -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(Experiment)


def _with_kinds(table: JsonObject) -> JsonObject:
    """Returns ``table`` with the fields that follow from the kind of its data, where unset."""
    data = table.get("data")
    given = data.get("kind") if isinstance(data, dict) else None
    if isinstance(data, dict) and given == "cifar_binary":  # Its name until 0.1.
        given = "cifar"
        table = table | {"data": data | {"kind": given}}
    kinds = {member.kind: member for member in spec_members(Data)}
    named = kinds.get(given) if isinstance(given, str) else None
    task = next((t for t in TASKS if named in t.data_kinds), TASKS[0])
    filled = {"objective": {}} | _with_kernel(_with_preset(table))
    for field, kind in task.spec_kinds.items():
        if isinstance(value := filled.get(field), dict):
            filled[field] = {"kind": kind} | value
    if task is not TASKS[0] and isinstance(study := table.get("study"), dict):
        filled["study"] = {"metric": task.metrics[0]} | study
    return filled


def _with_kernel(table: JsonObject) -> JsonObject:
    """Returns ``table`` with the kernel parametrization as a field of backbone, neck and head.

    Until 0.1 it was a field of each norm.
    """
    model = table.get("model")
    if not isinstance(model, dict):
        return table
    moved = {}
    for part in ("backbone", "neck", "head"):
        layer = model.get(part)
        if not isinstance(layer, dict):
            continue
        norms = {name: norm for name, norm in layer.items() if isinstance(norm, dict)}
        found = {name: norm["kernel"] for name, norm in norms.items() if "kernel" in norm}
        if not found:
            continue
        first, kernel = next(iter(found.items()))
        if other := [name for name in found if found[name] != kernel]:
            raise ConfigError(
                f"model.{part}.{other[0]}.kernel: is {found[other[0]]!r}, but that of {first} is "
                f"{kernel!r}; set model.{part}.kernel, one for all convolutions"
            )
        if kernel != "free":
            _log_renamed(f"model.{part}.{first}.kernel", f"model.{part}.kernel")
        without = {
            name: {k: v for k, v in norm.items() if k != "kernel"} for name, norm in norms.items()
        }
        moved[part] = layer | without | {"kernel": kernel}
    return table | {"model": model | moved} if moved else table


@functools.cache
def _log_renamed(old: str, new: str) -> None:
    logging.getLogger(__name__).warning("%s: renamed to %s", old, new)


def _with_preset(table: JsonObject) -> JsonObject:
    """Returns ``table`` with a backbone given by name written out, or with its kind."""
    model = table.get("model")
    backbone = model.get("backbone") if isinstance(model, dict) else None
    if isinstance(backbone, dict) and isinstance(model, dict):
        return table | {"model": model | {"backbone": {"kind": "resnet"} | backbone}}
    if not isinstance(model, dict) or not isinstance(backbone, str):
        return table
    if backbone not in PRESETS:
        raise ConfigError(f"model.backbone: {unknown('backbone', backbone, list(PRESETS))}")
    written = pydantic.TypeAdapter(Backbone).dump_python(PRESETS[backbone](), mode="json")
    return table | {"model": model | {"backbone": written}}
