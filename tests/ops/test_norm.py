"""Norms and their derivatives against their definition, for the complete table of norms."""

import dataclasses
import functools
import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.norm_layer import NormState
from fpnlab.nn.norm_specs import BatchNorm, Norm, Renorm
from fpnlab.ops import norm as ops

from .norm_cases import (
    ALIASES,
    ARMS,
    FAST_COMPILE,
    MASKED,
    MODES,
    assert_close,
    define,
    double,
    fill,
    maps,
    moments_of,
    over_axis,
    run,
    some_pixels,
    weights_of,
)


def test_the_table_has_every_norm_and_every_source_and_update_of_statistics():
    """A norm that is missing in `ARMS` has no test of structure, definition or numerics."""
    assert {type(arm.norm) for arm in ARMS.values()} == set(typing.get_args(Norm))
    of = [arm.mode for arm in ARMS.values() if isinstance(arm.norm, BatchNorm)]
    pairs = lambda modes: {(mode.stats, mode.update) for mode in modes}
    assert pairs(of) == pairs(MODES)
    assert len(pairs(MODES)) == 6


def test_the_table_reaches_every_function_of_maps_in_ops_norm(monkeypatch):
    functions = {n: f for n, f in vars(ops).items() if inspect.isfunction(f) and n[0] != "_"}
    own = {n: f for n, f in functions.items() if f.__module__ == ops.__name__}
    of_maps = {n: f for n, f in own.items() if "x" in inspect.signature(f).parameters}
    called = set()
    for name, function in of_maps.items():
        record = lambda *args, name=name, function=function, **options: (
            called.add(name) or function(*args, **options)
        )
        monkeypatch.setattr(ops, name, record)
    for arm in ARMS.values():
        run(arm, *fill(arm), maps())
    assert called == set(of_maps)
    assert len(called) >= 10


@pytest.mark.parametrize("spec", [*typing.get_args(Norm), Renorm], ids=lambda spec: spec.__name__)
def test_the_table_has_every_choice_and_no_default_number_of_every_field(spec):
    norms = [arm.norm for arm in ARMS.values()] + [
        norm for norms in ALIASES.values() for norm in norms
    ]
    norms += [over_axis(ARMS["batch_norm"]).norm]  # test_shards_of_a_named_axis_are_one_batch
    values = [norm for norm in norms if isinstance(norm, spec)]
    values += [norm.renorm for norm in norms if spec is Renorm and getattr(norm, "renorm", None)]
    for name, hint in typing.get_type_hints(spec).items():
        if name == "kind":
            continue
        tested = {getattr(value, name) for value in values}
        choices = {True, False} if hint is bool else set(typing.get_args(hint))
        if choices and not any(isinstance(choice, type) for choice in choices):
            assert tested == choices, name
        else:
            (default,) = [f.default for f in dataclasses.fields(spec) if f.name == name]
            assert tested - {default}, name


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_norms_are_their_definition_in_every_mode_which_only_batch_norms_know(mode):
    """Source and update of statistics are independent switches; stochastic parts: none."""
    for name, arm in ARMS.items():
        (params, state), x = fill(arm), maps()
        like = dataclasses.replace(arm, mode=mode)
        y, new = run(like, params, state, x)
        expected, after = define(like, *double((params, state)), x)
        np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5, err_msg=name)
        assert_close(new, after, rtol=2e-5)
        if not isinstance(arm.norm, BatchNorm):
            np.testing.assert_array_equal(y, run(arm, params, state, x)[0])
            assert new is state


@pytest.mark.parametrize("name", ALIASES)
def test_other_specs_of_a_norm_are_the_same_norm(name):
    arm = ARMS[name]
    expected, _ = run(arm, *fill(arm), maps())
    for norm in ALIASES[name]:
        found, _ = run(dataclasses.replace(arm, norm=norm), *fill(arm), maps())
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "shape", [(2, 4), (8, 5, 4), (4, 2, 3, 4), (4, 2, 3, 2, 4)], ids=lambda shape: f"{len(shape)}d"
)
@pytest.mark.parametrize("name", ARMS)
def test_norms_are_their_definition_on_dense_layers_sequences_images_and_volumes(name, shape):
    arm, x = ARMS[name], maps(shape)
    params, state = fill(arm)
    if arm.rejects(shape):
        with pytest.raises(ValueError, match="one value"):
            run(arm, params, state, x)
        return
    for mask in (None, some_pixels(shape)) if arm.takes_mask else (None,):
        y, new = run(arm, params, state, x, mask)
        expected, after = define(arm, *double((params, state)), x, mask)
        np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)
        assert_close(new, after, rtol=2e-5)


@pytest.mark.parametrize("seen", [0, 4, 5, 8, 12, 16, 20, 100])
def test_the_limits_of_a_renorm_follow_their_schedule_in_examples(seen):
    arm = ARMS["renorm"]
    params, state = fill(arm)
    state = dataclasses.replace(state, seen=jnp.float32(seen))
    for x in (maps(), 10 * maps(), maps() / 10):  # beyond the limits in either direction
        y, new = run(arm, params, state, x)
        expected, _ = define(arm, *double((params, state)), x)
        np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)
        assert new.seen == seen + len(x)


def trees_of(arm):
    """Returns what an arm is differentiated by: parameters, running mean and variance, maps."""
    params, state = fill(arm, dtype=jnp.float64)
    return params, moments_of(state), jnp.asarray(maps(dtype=np.float64))


def state_of(moments):
    """Returns the state with this running mean and variance."""
    return NormState(mean=moments[0], var=moments[1], count=16.0, seen=8.0) if moments else None


def outputs_of(how, arm, mask, trees, *at):
    """Returns the maps and, of a norm with state, the new mean and variance, in one list."""
    y, new = how(arm, trees[0], state_of(trees[1]), trees[2], mask, *at)
    return [y, *moments_of(new)]


def weighted(outputs):
    """Returns one number that depends on every output."""
    return sum((output * w).sum() for output, w in zip(outputs, weights_of()))


def central_differences(function, trees, step=1e-5):
    """Returns the gradient of a NumPy function, entry by entry."""
    leaves, structure = jax.tree.flatten(jax.tree.map(np.array, trees))
    gradients = [np.zeros_like(leaf) for leaf in leaves]
    for leaf, gradient in zip(leaves, gradients):
        for index in np.ndindex(leaf.shape):
            kept, values = leaf[index], []
            for sign in (1, -1):
                leaf[index] = kept + sign * step
                values.append(function(jax.tree.unflatten(structure, leaves)))
            leaf[index] = kept
            gradient[index] = (values[0] - values[1]) / (2 * step)
    return gradients


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST_COMPILE)
def derivatives(arm, mask, trees, direction):
    """Returns outputs and gradient of an arm, and derivatives found in other ways."""
    outputs = functools.partial(outputs_of, run, arm, mask)
    loss = lambda trees: (weighted(outputs(trees)), outputs(trees))
    by_maps = lambda x: weighted(outputs((*trees[:2], x)))
    slope, x, along = jax.grad(by_maps), trees[2], direction[2]
    gradient, found = jax.grad(loss, has_aux=True)(trees)
    return {
        "outputs": found,
        "gradient": gradient,
        "forward": jax.jvp(outputs, (trees,), (direction,))[1],
        "hessian": jax.hessian(by_maps)(x),
        "reverse over reverse": jax.grad(lambda x: jnp.vdot(slope(x), along))(x),
    }


@pytest.mark.parametrize(("name", "masked"), MASKED)
def test_norms_and_their_derivatives_are_those_of_the_definition(name, masked):
    arm, mask = ARMS[name], some_pixels() if masked else None
    random = np.random.default_rng(5)
    with jax.enable_x64(True):
        trees = trees_of(arm)
        direction = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), trees)
        found = double(derivatives(arm, mask, trees, direction))
    exact = double(trees)
    constants = exact[0], state_of(exact[1]), exact[2]
    of_trees = lambda trees: outputs_of(define, arm, mask, trees, constants)
    assert_close(found["outputs"], of_trees(exact), rtol=1e-12, atol=1e-12)

    loss = lambda trees: weighted(of_trees(trees))
    assert_close(found["gradient"], central_differences(loss, exact), rtol=1e-7, atol=1e-7)
    leaves = zip(jax.tree.leaves(found["gradient"]), jax.tree.leaves(double(direction)))
    forward = sum((a * b).sum() for a, b in leaves)
    np.testing.assert_allclose(weighted(found["forward"]), forward, rtol=1e-11, atol=1e-11)

    along, step = np.asarray(direction[2]), 1e-4
    at = lambda x, sign: loss((*exact[:2], x + sign * step * along))
    slope = lambda x: (at(x, 1) - at(x, -1)) / (2 * step)
    (curvature,) = central_differences(slope, exact[2], step)
    np.testing.assert_allclose(found["reverse over reverse"], curvature, rtol=1e-5, atol=1e-5)
    hessian = found["hessian"].reshape(along.size, along.size)
    product = found["reverse over reverse"].ravel()
    np.testing.assert_allclose(hessian @ along.ravel(), product, rtol=1e-10, atol=1e-11)
