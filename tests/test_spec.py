"""Validation of the fields of specs by their constructor."""

import dataclasses
import math
import pydoc
from typing import Annotated, Literal

import numpy as np
import pytest

import fpnlab
from fpnlab.nn.norm_specs import LayerNorm
from fpnlab.spec import Bounds, Count, Fraction, Positive, SpecError, field_docs, spec
from fpnlab.types import Mode


@spec
class Layer:
    """A spec with a field of each sort."""

    kind: Literal["plain", "wide"] = "plain"
    width: Annotated[int, Count] = 8
    rate: Annotated[float | None, Fraction] = None
    areas: Annotated[tuple[float, ...], Positive] = (1.0, 2.0)
    size: int | tuple[int, int] = 3
    deep: bool = False
    mode: Mode = Mode.EVAL


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("kind", "narrow", "is 'narrow'; it must be one of plain, wide"),
        ("width", 0, "is 0; it must be at least 1 and below 2147483648"),
        ("width", True, "is True; it must be an int"),
        ("width", 2.0, "is 2.0; it must be an int"),
        ("rate", math.nan, "is nan; it must be a finite number or none"),
        ("rate", 1.0, "is 1.0; it must be at least 0 and below 1"),
        ("areas", (1.0, -1.0), "is (1.0, -1.0); it must be above 0"),
        ("areas", (1.0, "2"), "entries are each a finite number"),
        ("areas", [1.0], "is [1.0]; it must be a tuple"),
        ("size", (3, 3, 3), "is (3, 3, 3); it must be an int or a tuple of 2"),
        ("deep", 1, "is 1; it must be a bool"),
        ("mode", "eval", "is 'eval'; it must be a Mode"),
    ],
)
def test_an_invalid_field_raises_with_its_name_value_and_type(field, value, words):
    with pytest.raises(SpecError) as caught:
        Layer(**{field: value})
    assert str(caught.value).startswith(f"Layer: {field} is ")
    assert words in str(caught.value)


def test_all_invalid_fields_are_named_at_once():
    with pytest.raises(SpecError) as caught:
        Layer(kind="narrow", width=0, deep=None)
    assert [name for name, _ in caught.value.invalid] == ["kind", "width", "deep"]


def test_numpy_scalars_are_valid_numbers():
    layer = Layer(width=np.int64(4), rate=np.float32(0.5), size=(np.int32(3), 3))
    assert layer == Layer(width=4, rate=0.5, size=(3, 3))


def test_dataclasses_replace_checks_the_copy():
    with pytest.raises(SpecError, match="width is 0"):
        dataclasses.replace(Layer(), width=0)


@pytest.mark.parametrize(
    "wrong", [lambda: Mode(stats="eval"), lambda: LayerNorm(axes="whc"), lambda: Mode(update=True)]
)
def test_specs_of_the_package_check_their_literals_in_python(wrong):
    with pytest.raises(SpecError, match="it must be"):
        wrong()


def test_str_of_bounds_lists_the_limits():
    assert str(Bounds(above=0.0, most=1.0)) == "above 0 and at most 1"


def test_help_of_a_spec_shows_the_docstring_of_each_field():
    text = pydoc.plain(pydoc.render_doc(fpnlab.BatchNorm))
    assert "Attributes:" in text
    for name, meaning in field_docs(fpnlab.BatchNorm).items():
        if name != "kind":
            assert f"{name}: {meaning.splitlines()[0]}" in text
