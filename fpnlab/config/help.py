"""Fields of an experiment with type, default and meaning, for the help of commands."""

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Iterator
from typing import NamedTuple

from fpnlab.config.experiment import Experiment
from fpnlab.config.hints import field_paths, spec_members
from fpnlab.errors import ConfigError
from fpnlab.spec import field_docs


class Field(NamedTuple):
    """One field of an experiment."""

    path: str
    """Dotted path."""
    type: str
    """Type in words, e.g. ``int`` or ``constant|cosine``."""
    default: str
    """Default value, or ``required``."""
    meaning: str
    """The whole docstring under the field."""
    specs: tuple[type, ...]
    """Specs that the field may hold; their fields are its section."""


class Kind(NamedTuple):
    """A spec that a field may hold."""

    name: str
    """The value of its ``kind``; "" where the field holds no other."""
    meaning: str
    """Its docstring, without its fields."""
    fields: tuple[Field, ...]
    """Its fields."""


def sections(path: str = "") -> tuple[Field | None, tuple[Kind, ...]]:
    """Returns a field, and the specs that it may hold with their fields.

    Args:
      path: Dotted path of the field; "" for the experiment itself, which is no field.

    Raises:
      ConfigError: There is no such field; names the nearest ones.
    """
    field, specs, prefix = None, (Experiment,), ""
    for name in path.split(".") if path else ():
        found = [f for spec in specs for f in _fields(spec, prefix) if f.path == prefix + name]
        if not found:
            close = difflib.get_close_matches(path, [*field_paths(Experiment)], n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ConfigError(f"{path}: unknown field{hint}")
        field = found[0]
        specs = tuple(dict.fromkeys(spec for f in found for spec in f.specs))
        prefix = f"{prefix}{name}."
    if field is not None:
        field = field._replace(specs=specs)
    kinds = tuple(
        Kind(
            getattr(spec, "kind", "") if len(specs) > 1 else "",
            (inspect.getdoc(spec) or "").split("\n\nAttributes:")[0],
            tuple(_fields(spec, prefix)),
        )
        for spec in specs
    )
    return field, kinds


def _fields(spec: type, prefix: str) -> Iterator[Field]:
    docs, hints = field_docs(spec), typing.get_type_hints(spec)
    for field in dataclasses.fields(spec):
        if field.name == "kind":
            continue
        hint = hints[field.name]
        # A list of one kind or another has the fields of its entries.
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
        yield Field(
            prefix + field.name,
            _type_name(hint),
            "required" if field.default is dataclasses.MISSING else _plain(field.default),
            docs[field.name],
            tuple(spec_members(inner)),
        )


def _type_name(hint: typing.Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return "|".join(_type_name(m) for m in typing.get_args(hint) if m is not type(None))
    if typing.get_origin(hint):
        inner = ",".join("..." if a is ... else _type_name(a) for a in typing.get_args(hint))
        name = hint.__origin__.__name__.replace("tuple", "list")
        return f"{name}[{inner}]"
    if dataclasses.is_dataclass(hint):
        return str(getattr(hint, "kind", "table"))
    return "value" if hint is typing.Any else hint.__name__


def _plain(value: object) -> str:
    if dataclasses.is_dataclass(value):
        return getattr(value, "kind", "see its section")
    return "none" if value is None else str(list(value) if isinstance(value, tuple) else value)
