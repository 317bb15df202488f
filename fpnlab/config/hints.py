"""Types of the fields of nested specs, by their annotations: for values that come as text."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any


def spec_members(hint: Any) -> list[Any]:
    """Returns the dataclasses that a type admits."""
    return [m for m in _options(hint) if dataclasses.is_dataclass(m)]


def with_none(value: Any, hint: Any) -> Any:
    """Returns ``value`` with the text "none" as None, wherever its field admits None.

    TOML has no word for None. A field of text keeps the word, as does one of any type.

    Args:
      value: tables, lists and values as they come from TOML or JSON.
      hint: the type that it is to have.
    """
    if value == "none" and isinstance(value, str):
        options = _options(hint)
        return None if type(None) in options and str not in options else value
    if isinstance(value, list) and (inner := _entries(hint)) is not None:
        return [with_none(entry, inner) for entry in value]
    if isinstance(value, dict):
        hints = _fields(_member(hint, value))
        return {k: with_none(v, hints[k]) if k in hints else v for k, v in value.items()}
    return value


def field_hint(kind: Any, path: Sequence[str], table: Any) -> Any:
    """Returns the type of the field at a path of names; None where there is no such field.

    Args:
      kind: the type of the whole.
      path: names of fields, and places in lists.
      table: what is given for the whole, whose ``kind`` tells which member of a union is meant.
    """
    hint = kind
    for name in path:
        if name.isdecimal() and (inner := _entries(hint)) is not None:
            place = int(name)
            table = table[place] if isinstance(table, list) and place < len(table) else None
            hint = inner
            continue
        hints = _fields(_member(hint, table if isinstance(table, dict) else {}))
        if name not in hints:
            return None
        hint, table = hints[name], table.get(name) if isinstance(table, dict) else None
    return hint


def field_paths(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted paths of all fields of a spec and of the specs inside it, each once."""
    seen = set()
    for member in spec_members(kind):
        for name, hint in _fields(member).items():
            if name in seen:
                continue
            seen.add(name)
            yield prefix + name
            yield from field_paths(hint, f"{prefix}{name}.")


def _options(hint):
    """Returns the members of a union, or the type alone; without annotations."""
    if typing.get_origin(hint) is typing.Annotated:
        return _options(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for arg in typing.get_args(hint) for option in _options(arg)]
    return [hint]


def _entries(hint):
    """Returns the type of a list's entries; None where the type admits no list."""
    lists = [option for option in _options(hint) if typing.get_origin(option) is tuple]
    return typing.get_args(lists[0])[0] if lists else None


def _member(hint, table):
    """Returns the dataclass that a table is meant for; None where that is not known."""
    members = spec_members(hint)
    if len(members) == 1:
        return members[0]
    return next((m for m in members if getattr(m, "kind", None) == table.get("kind")), None)


def _fields(cls):
    if cls is None:
        return {}
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}
