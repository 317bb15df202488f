"""Annotations of the fields of nested specs, found by dotted paths."""

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping, Sequence

from fpnlab.records.json_files import JsonObject


def spec_members(hint: object) -> list[type]:
    """Returns the dataclasses among the members of a union, or the type itself if it is one."""
    return [m for m in _options(hint) if isinstance(m, type) and dataclasses.is_dataclass(m)]


def kind_of(member: object) -> str | None:
    """Returns the value of ``kind`` that tells a spec from the others of its union, if any."""
    return getattr(member, "kind", None)


def with_none(table: JsonObject, kind: type) -> JsonObject:
    """Returns ``table`` with the text "none" as None, wherever its field admits None.

    TOML has no word for None. A field of text keeps the word, as does one of any type.

    Args:
      table: Tables, lists and values as they come from TOML or JSON.
      kind: The spec that it describes.
    """
    return _with_none_fields(table, kind)


def _with_none_fields(table: Mapping[str, object], hint: object) -> JsonObject:
    hints = _fields(_member(hint, table))
    return {
        name: _with_none(value, hints[name]) if name in hints else value
        for name, value in table.items()
    }


def _with_none(value: object, hint: object) -> object:
    if value == "none" and isinstance(value, str):
        options = _options(hint)
        return None if type(None) in options and str not in options else value
    if isinstance(value, list) and (inner := _entries(hint)) is not None:
        return [_with_none(entry, inner) for entry in value]
    return _with_none_fields(value, hint) if isinstance(value, dict) else value


def field_hint(kind: type, path: Sequence[str], table: object) -> object:
    """Returns the annotation of the field at a path; None for an unknown field.

    Args:
      kind: The spec that the path begins at.
      path: Names of fields, and places in lists.
      table: The table given for that spec; its ``kind`` values select the members of unions.
    """
    hint: object = kind
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


def field_paths(kind: object, prefix: str = "") -> Iterator[str]:
    """Yields the dotted paths of all fields of a spec and of the specs inside it, each once."""
    seen: set[str] = set()
    for member in spec_members(kind):
        for name, hint in _fields(member).items():
            if name in seen:
                continue
            seen.add(name)
            yield prefix + name
            yield from field_paths(hint, f"{prefix}{name}.")


def _options(hint: object) -> list[object]:
    """Returns the members of a union, or the type alone; without ``Annotated``."""
    if typing.get_origin(hint) is typing.Annotated:
        return _options(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for arg in typing.get_args(hint) for option in _options(arg)]
    return [hint]


def _entries(hint: object) -> object:
    """Returns the type of a list's entries; None if the type admits no list."""
    lists = [option for option in _options(hint) if typing.get_origin(option) is tuple]
    return typing.get_args(lists[0])[0] if lists else None


def _member(hint: object, table: Mapping[str, object]) -> type | None:
    """Returns the dataclass that a table describes; None if that is not known."""
    members = spec_members(hint)
    if len(members) == 1:
        return members[0]
    return next((m for m in members if kind_of(m) == table.get("kind")), None)


def _fields(cls: type | None) -> dict[str, object]:
    if cls is None:
        return {}
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}
