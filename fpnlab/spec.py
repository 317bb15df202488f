"""Specs: frozen dataclasses that describe layers, models and recipes, with validated fields."""

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import numbers
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, dataclass_transform

T = TypeVar("T")


class SpecError(ValueError):
    """Invalid fields of a spec, all of them in one error."""

    def __init__(self, owner: str, invalid: list[tuple[str, str]]) -> None:
        """Keeps the pairs ``(field, "is ...; it must be ...")`` for messages with dotted paths.

        Args:
          owner: Name of the spec's class.
          invalid: Name of each invalid field, and what is wrong with its value.
        """
        super().__init__("; ".join(f"{owner}: {name} {wrong}" for name, wrong in invalid))
        self.invalid = tuple(invalid)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """Limits of a number, or of every number in a tuple, for use inside ``Annotated``."""

    above: float | None = None
    """Excluded lower limit."""
    least: float | None = None
    """Included lower limit."""
    below: float | None = None
    """Excluded upper limit."""
    most: float | None = None
    """Included upper limit."""

    def __contains__(self, value: float | int) -> bool:
        """Returns whether ``value`` lies within the limits; NaN never does."""
        return (
            (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )

    def __str__(self) -> str:
        """Returns the limits as text, e.g. "at least 0 and below 1"."""
        words = (
            ("above", self.above),
            ("at least", self.least),
            ("below", self.below),
            ("at most", self.most),
        )
        return " and ".join(f"{word} {limit:.10g}" for word, limit in words if limit is not None)

    def __get_pydantic_core_schema__(
        self, source: object, handler: Callable[[object], Any]
    ) -> Mapping[str, object]:
        """Returns pydantic's schema of a field with these limits.

        With it a config reports a field out of bounds together with the errors of nested specs.
        """
        from pydantic_core import core_schema

        def check(value: T) -> T:
            if wrong := _out_of_bounds(value, (self,)):
                raise ValueError(f"is {value!r}; it must be {wrong}")
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))


Positive = Bounds(above=0.0)
"""Above 0: rates, sizes and divisors."""
NonNegative = Bounds(least=0.0)
"""At least 0: weights and decays, where 0 switches a term off."""
Count = Bounds(least=1.0, below=2.0**31)
"""A positive count that fits into an int32."""
Fraction = Bounds(least=0.0, below=1.0)
"""A fraction below 1: momentum, decay, drop rates."""
Inside = Bounds(above=0.0, below=1.0)
"""A fraction strictly between 0 and 1."""
Share = Bounds(least=0.0, most=1.0)
"""A fraction from 0 to 1, both included."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def spec(cls: type[T]) -> type[T]:
    """Returns ``cls`` as a spec: a frozen, hashable, keyword-only dataclass with checked fields.

    A spec describes what to build. Its constructor checks each field against its annotation
    (the values of a ``Literal``, finite numbers, the `Bounds` of an ``Annotated``) before the
    class's own ``__post_init__`` runs. Unknown fields are errors, also in a config (pydantic reads
    ``__pydantic_config__``).

    The constructor of the returned class raises:
      SpecError: Invalid values, of all fields at once.
    """
    own = cls.__dict__.get("__post_init__")

    def __post_init__(self: object) -> None:
        check_fields(self)
        if own is not None:
            own(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    built = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    # Runtime type checkers skip the constructor: `check_fields` accepts an int for a float, and
    # its errors are a `SpecError`.
    built.__init__.__no_type_check__ = True  # type: ignore[attr-defined]
    built.__doc__ = _DocWithFields(built.__doc__ or "")  # type: ignore[assignment]
    return built


def field_docs(cls: type) -> dict[str, str]:
    """Returns the docstring of each field of a dataclass by field name; "" for those without."""
    source = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    body = next(node.body for node in ast.walk(source) if isinstance(node, ast.ClassDef))
    docs = {}
    for statement, after in itertools.pairwise(body):
        match statement, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(text))):
                docs[name] = inspect.cleandoc(text)
    return {field.name: docs.get(field.name, "") for field in dataclasses.fields(cls)}


class _DocWithFields:
    """The docstring of a spec followed by those of its fields, which `help` would not show.

    The source is read on first access to the docstring, not when the class is created, because
    parsing it for every spec would slow down `import fpnlab`.
    """

    def __init__(self, doc: str) -> None:
        self._doc = doc

    def __get__(self, instance: object, owner: type) -> str:
        return _with_fields(owner, self._doc)


@functools.cache
def _with_fields(cls: type, doc: str) -> str:
    try:
        docs = field_docs(cls)
    except (OSError, TypeError, StopIteration):  # No source, e.g. for a class defined in a console.
        return doc
    rows = [
        textwrap.indent(f"{name}: {textwrap.indent(text, '  ').strip()}", "  ")
        for name, text in docs.items()
        if text
    ]
    return "\n".join([inspect.cleandoc(doc), "", "Attributes:", *rows]) if rows else doc


def check_fields(value: object) -> None:
    """Checks the fields of a dataclass against their annotations.

    Raises:
      SpecError: Invalid values, of all fields at once.
    """
    hints = _hints(type(value))
    invalid = [
        (name, f"is {getattr(value, name)!r}; it must be {wrong}")
        for name, hint in hints.items()
        if (wrong := _mismatch(getattr(value, name), hint))
    ]
    if invalid:
        raise SpecError(type(value).__name__, invalid)


@functools.cache
def _hints(cls: type) -> dict[str, object]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _mismatch(value: object, hint: object) -> str | None:
    """Returns a description of the type ``hint`` if ``value`` is not of it, else None."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _mismatch(value, args[0]) or _out_of_bounds(value, args[1:])
    if origin is typing.Literal:
        fits = any(value == arg and type(value) is type(arg) for arg in args)
        return None if fits else f"one of {', '.join(map(str, args))}"
    if origin in (typing.Union, types.UnionType):
        wrong = [_mismatch(value, arg) for arg in args]
        return None if None in wrong else " or ".join(dict.fromkeys(filter(None, wrong)))
    if origin is tuple:
        return _tuple_mismatch(value, args)
    return _plain_mismatch(value, hint if origin is None else origin)


def _out_of_bounds(value: object, metadata: tuple[object, ...]) -> str | None:
    parts = value if isinstance(value, tuple) else (value,)
    given = [part for part in parts if isinstance(part, numbers.Real)]  # Not None.
    if not all(map(math.isfinite, given)):
        return "a finite number"
    limits = [bounds for bounds in metadata if isinstance(bounds, Bounds)]
    return next((str(b) for b in limits for part in given if float(part) not in b), None)


def _tuple_mismatch(value: object, args: tuple[object, ...]) -> str | None:
    if not isinstance(value, tuple):
        return "a tuple"
    of = args[:1] * len(value) if args[-1:] == (...,) else args
    if len(of) != len(value):
        return f"a tuple of {len(of)}"
    wrong = (_mismatch(part, hint) for part, hint in zip(value, of))
    return next((f"a tuple whose entries are each {w}" for w in wrong if w), None)


def _plain_mismatch(value: object, kind: object) -> str | None:
    if kind is int:
        fits, name = isinstance(value, numbers.Integral) and not isinstance(value, bool), "an int"
    elif kind is float:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        fits, name = real and math.isfinite(value), "a finite number"
    elif isinstance(kind, type) and kind is not Any:
        name = "none" if kind is type(None) else f"a {kind.__name__}"
        fits = isinstance(value, kind)
    else:  # Any, and types that an isinstance check cannot decide
        return None
    return None if fits else name
