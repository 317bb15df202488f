"""Text of users for terminals, pages and cells of tables."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fpnlab.records.plain_text import FORMULA, from_table_cell, table_cell, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb\nc\td", r"a\rb\nc\td"),
        ("a\u202egpj.exe\u2066", r"a\u202egpj.exe\u2066"),
        ("line\u2028end", r"line\u2028end"),
        (b"caf\xe9".decode(errors="surrogateescape"), r"caf\xe9"),
        ("half a pair \ud83d", r"half a pair \ud83d"),
        (
            "Größe 大小 גודל 👩\u200d🔬 $x_1$ [bold] \\n  ",
            "Größe 大小 גודל 👩\u200d🔬 $x_1$ [bold] \\n  ",
        ),
    ],
)
def test_visible_escapes_what_steers_a_terminal_and_keeps_all_else(text, shown):
    assert visible(text) == shown


def test_visible_keeps_the_controls_that_it_is_given():
    assert visible("a\n\tb\x1b\r", keep="\n\t") == "a\n\tb\\x1b\\r"


@given(st.text(st.characters(codec=None)))
def test_visible_text_can_be_encoded_and_has_one_line(text):
    assert len(visible(text).encode().decode().splitlines()) <= 1


@given(st.text("'=+-@\t\r\n a1"))
def test_a_cell_of_a_table_is_no_formula_and_is_read_back(text):
    cell = table_cell(text)
    assert cell[:1] not in FORMULA
    assert from_table_cell(cell) == text


@pytest.mark.parametrize("number", [-1.5, -3, 0.0, True, None])
def test_a_number_stays_a_number_in_a_table(number):
    assert table_cell(number) is number
