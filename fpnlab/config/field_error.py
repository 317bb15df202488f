"""The error of a config's fields: each with its dotted path, the problem, and what would work."""

import difflib
from collections.abc import Sequence

from fpnlab.spec import SpecError


class FieldError(SpecError):
    """Fields of a spec that are invalid together, such as an arm that no axis of a study has.

    In Python its message is ``"claims.0.rules.0: unknown axis value 3; expected one of 2, 4"``; in
    a config, the path of the spec comes before: ``"study.claims.0.rules.0: unknown ..."``.
    """

    def __init__(self, *problems: tuple[str, str]) -> None:
        """Keeps pairs of a field's dotted path inside the spec and what is wrong with it."""
        ValueError.__init__(self, "\n".join(f"{path}: {problem}" for path, problem in problems))
        self.invalid = problems


def unknown(what: str, given: object, known: Sequence[object]) -> str:
    """Returns the message for an unknown name: the nearest known one, if any, and all of them.

    Args:
      what: The kind of name, such as ``"field"``.
      given: The unknown name.
      known: All names that would work.
    """
    names = [str(name) for name in known]
    # Only words have a nearest name: digits that look alike are unrelated numbers.
    close = difflib.get_close_matches(given, names, n=1) if isinstance(given, str) else []
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"unknown {what} {given!r}{hint}; expected one of {', '.join(names)}"
