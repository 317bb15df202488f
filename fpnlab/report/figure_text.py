"""Text of users in figures: verbatim as far as fonts and space allow, and always told apart.

A font that lacks a character would make Matplotlib warn and draw an empty box. Fonts for other
scripts that are installed are used; a character that none of them has is drawn as `MISSING`.
"""

import functools
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fpnlab.records.plain_text import visible

if TYPE_CHECKING:
    import matplotlib.figure

FONT = "DejaVu Sans"
"""The font that comes with Matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew and symbols."""
OTHER_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "IPAGothic",
    "NanumGothic",
    "PingFang SC",
    "Hiragino Sans",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Emoji",
    "Symbola",
    "Unifont",
)
"""Fonts of usual systems for the scripts that `FONT` lacks."""
MISSING = "\u25a1"
"""White square in place of a character that no font has."""
LONGEST = 32
"""Columns of a name in a legend at most."""


@functools.cache
def families() -> list[str]:
    """Returns the installed fonts, in the order in which a character is looked for in them."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return [FONT, *(name for name in OTHER_FONTS if name in installed)]


@functools.cache
def _characters() -> frozenset[int]:
    """Returns the code points that the fonts have."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(code for name in families() for code in get_font(findfont(name)).get_charmap())


def drawable(text: str) -> str:
    """Returns text with characters that no font has replaced by `MISSING`."""
    if text.isascii():
        return text
    return "".join(c if c == "\n" or ord(c) in _characters() else MISSING for c in text)


def draw_every_text(figure: "matplotlib.figure.Figure") -> None:
    """Makes all texts of a figure `drawable`; labels of ticks are made so by `names`."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text(drawable(visible(text.get_text(), keep="\n")))


def columns(text: str) -> int:
    """Returns the width of text in columns; East Asian characters are two wide."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shortened(text: str, longest: int = LONGEST) -> str:
    """Returns text on one line, with its middle left out if it is too long."""
    text = visible(text)
    if columns(text) <= longest:
        return text
    room = longest - 1
    head = _fitting(text, room - room // 3)
    tail = _fitting(text[::-1], room // 3)[::-1]
    return f"{head}\u2026{tail}"


def names(texts: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Returns names as figures show them, each different from the others.

    A name is numbered if the shortened names of two coincide or characters of it are missing.
    """
    short = [shortened(text, longest) for text in texts]
    drawn = [drawable(text) for text in short]
    return [
        f"{i}: {name}" if name != plain or drawn.count(name) > 1 else name
        for i, (name, plain) in enumerate(zip(drawn, short), 1)
    ]


def wrapped(text: str, width: int, most: int = 3) -> str:
    """Returns text on several lines of at most ``width`` columns; the last one is shortened."""
    lines = [""]
    for word in visible(text).split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if columns(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    kept = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return "\n".join(shortened(line, width) for line in kept if line)


def _fitting(text: str, room: int) -> str:
    """Returns the longest start of text of at most ``room`` columns."""
    end = used = 0
    for character in text:
        used += columns(character)
        if used > room:
            break
        end += 1
    return text[:end]
