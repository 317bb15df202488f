"""Every field of an experiment in words, for the help of commands."""

import dataclasses
import types
import typing

from fpnlab.config.experiment import Experiment
from fpnlab.config.hints import spec_members
from fpnlab.spec import field_docs


def fields() -> list[tuple[str, str, str, str]]:
    """Returns path, type, default and meaning of every field, for the help of commands."""
    return list(_fields(Experiment, "", {}))


def _fields(kind, prefix, described):
    docs, hints = field_docs(kind), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        path, hint = prefix + field.name, hints[field.name]
        if field.name == "kind":
            continue
        default = "required" if field.default is dataclasses.MISSING else _plain(field.default)
        # A list of one kind or another has the fields of its entries.
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
        members = spec_members(inner)
        meaning = docs[field.name].split("\n\n")[0]
        if hint in described:
            meaning += f" Its fields are those of {described[hint]}."
        yield path, _type_name(hint), default, meaning
        if members and hint not in described:
            described[hint] = path
            for member in members:
                for name, of, value, text in _fields(member, f"{path}.", described):
                    yield name, of, value, f"({member.kind}) {text}" if len(members) > 1 else text


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
