"""Error messages of norms: `data/norm_errors.txt`, calls and what they raise.

A new error gets a line `>>> call` there; `python -m tests.nn.test_norm_errors` writes the messages
of all calls anew.
"""

import ast
import dataclasses
import inspect
import pathlib
import traceback
import typing

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from fpnlab.nn import norm_edit, norm_layer, norm_specs
from fpnlab.ops import norm as ops
from fpnlab.spec import Bounds, SpecError
from fpnlab.types import Mode

FILE = pathlib.Path(__file__).parent / "data" / "norm_errors.txt"
MODULES = {module.__file__: module for module in (ops, norm_specs, norm_layer, norm_edit)}


def on_devices(devices, norm, x):
    """Applies a norm to maps that are split over devices, the axis `d`."""
    params, state = norm_layer.init_norm(norm, x.shape[-1])
    step = lambda x: norm_layer.apply_norm(norm, params, state, x, Mode.TRAIN)[0]
    return jax.vmap(step, axis_name="d")(x.reshape(devices, -1, *x.shape[1:]))


def fresh(norm):
    return norm_layer.init_norm(norm, 4)[1]


def collected(norm):
    return dataclasses.replace(fresh(norm), seen=jnp.ones(()))


NAMES = {name: value for module in MODULES.values() for name, value in vars(module).items()}
NAMES |= {
    "on_devices": on_devices,
    "fresh": fresh,
    "collected": collected,
    "ones": jnp.ones,
    "eps": 1e-5,
}
NAMES |= {"x": jnp.ones((8, 3, 5, 4)), "alpha": jnp.ones(())}
NAMES |= dict.fromkeys(("scale", "bias", "mean", "var", "threshold"), jnp.ones(4))


def calls():
    """Returns the calls of the file."""
    lines = FILE.read_text().splitlines()
    return [line.removeprefix(">>> ") for line in lines if line.startswith(">>> ")]


def error_of(call):
    """Returns the error that a call raises; None if it raises none."""
    try:
        eval(call, NAMES)
    except (TypeError, ValueError) as error:
        return error
    return None


def page():
    """Returns the text of the file with the messages that the calls have now."""
    lines = []
    for line in FILE.read_text().splitlines():
        if line.startswith(("SpecError: ", "ValueError: ", "TypeError: ", "nothing is raised")):
            continue
        lines.append(line)
        if line.startswith(">>> "):
            error = error_of(line.removeprefix(">>> "))
            lines.append(f"{type(error).__name__}: {error}" if error else "nothing is raised")
    return "\n".join(lines) + "\n"


@pytest.fixture(autouse=True)
def unchecked():
    """Switches off the shape checker of the tests, which users do not have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_error_messages_of_norms_are_those_of_the_snapshot():
    text = page()
    assert text == FILE.read_text()
    assert "nothing is raised" not in text


def test_the_snapshot_reaches_every_raise_of_the_norms():
    reached = set()
    for call in calls():
        for frame in traceback.extract_tb(error_of(call).__traceback__):
            reached.add((frame.filename, frame.lineno))
    for file, module in MODULES.items():
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Raise):
                lines = {(file, line) for line in range(node.lineno, node.end_lineno + 1)}
                assert lines & reached, f"no call raises {file}:{node.lineno}"


def test_the_snapshot_has_an_invalid_value_of_every_limited_field_of_a_norm():
    errors = [error for call in calls() if isinstance(error := error_of(call), SpecError)]
    invalid = {(str(error).split(":")[0], name) for error in errors for name, _ in error.invalid}
    for spec in (*typing.get_args(norm_specs.Norm), norm_specs.Renorm):
        hints = typing.get_type_hints(spec, include_extras=True)
        for field in dataclasses.fields(spec):
            limits = getattr(hints[field.name], "__metadata__", ())
            if any(isinstance(limit, Bounds) for limit in limits):
                assert (spec.__name__, field.name) in invalid


if __name__ == "__main__":
    FILE.write_text(page())
