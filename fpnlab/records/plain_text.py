"""Text of users on its way out: to a terminal, a page, a figure, or a cell of a table."""

import re

HIDDEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f"  # C0 and C1 controls: escape sequences, carriage returns, bells.
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # Marks that reorder what stands beside them.
    r"\u2028\u2029\ud800-\udfff]"  # Separators of lines, and what UTF-8 cannot encode.
)
"""Characters that change how other text is shown, or that no file can hold."""
SHORT = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}
FORMULA = frozenset("=+-@\t\r\n")
"""First characters with which a spreadsheet takes a cell for a formula."""


def visible(text: str, keep: str = "") -> str:
    r"""Returns text with control characters as escapes such as ``\x1b``; all else stays.

    A byte of a file's name that is not UTF-8 is shown as itself: ``caf\xe9``.

    Args:
      text: Text of a user, such as the name of an arm, or a message that has such text in it.
      keep: Control characters that stay: ``"\n\t"`` for text of several lines.
    """
    escaped = lambda found: found[0] if found[0] in keep else _escaped(found[0])
    return HIDDEN.sub(escaped, text)


def table_cell(value: object) -> object:
    """Returns a value as a cell of a CSV file in which no text begins as a formula.

    Such text gets an apostrophe in front, as spreadsheets write it. Numbers stay numbers.
    """
    return f"'{value}" if isinstance(value, str) and _like_formula(value) else value


def from_table_cell(cell: str) -> str:
    """Returns the text from which `table_cell` made a cell."""
    return cell[1:] if cell.startswith("'") and _like_formula(cell) else cell


def _like_formula(text: str) -> bool:
    # Apostrophes in front of a formula count, so that the text can be told from its cell.
    return text.lstrip("'")[:1] in FORMULA


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # Python's surrogate of a byte that is not UTF-8.
        code -= 0xDC00
    return SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
