"""Linen modules: results of the functions, conventions of Flax."""

import dataclasses
import functools
import inspect

import chex
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from fpnlab.adapters import linen
from fpnlab.adapters.shapes import shapes, widths_of
from fpnlab.adapters.trees import (
    from_flax_statistics,
    from_names,
    to_flax_statistics,
    to_names,
)
from fpnlab.nn.block import Block
from fpnlab.nn.detector import apply_detector
from fpnlab.nn.layers import apply, init
from fpnlab.nn.norm_layer import NormParams, apply_norm, init_norm
from fpnlab.nn.norm_specs import BatchNorm, GroupNorm, LayerNorm
from fpnlab.types import Mode

BN = BatchNorm()


def layers(detector):
    """Every kind of layer, with an input and the options its module needs."""
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 4))
    maps = {2: x, 3: x[:, ::2, ::2]}
    pyramid = {3: jax.random.normal(jax.random.key(2), (2, 4, 4, 8)), 4: jnp.ones((2, 2, 2, 8))}
    images = 255 * jax.random.uniform(jax.random.key(3), (2, 32, 32, 3))
    block = Block(
        kind="basic", inputs=4, width=8, stride=2, norm=BN, last_norm=BN, shortcut_norm=BN
    )
    neck = dataclasses.replace(detector.neck, min_level=2, max_level=4)
    head = dataclasses.replace(detector.head, anchors_per_cell=2, classes=3)
    return {
        "batch_norm": (BN, x),
        "group_norm": (GroupNorm(), x),
        "block": (block, x),
        "backbone": (detector.backbone, images),
        "neck": (neck, maps),
        "head": (head, pyramid),
        "detector": (detector, images),
    }


def trees_of(spec, x, variables):
    """Parameters and state as arguments for the functions."""
    params, state = shapes(spec, widths_of(x))
    stats = variables.get("batch_stats", {})
    return from_names(params, variables["params"]), from_names(state, stats)


NAMES = ("batch_norm", "group_norm", "block", "backbone", "neck", "head", "detector")


@pytest.mark.parametrize("name", NAMES)
def test_a_linen_module_equals_its_functions_bit_for_bit(name, detector):
    spec, x = layers(detector)[name]
    module = linen.Layer(spec)
    run = lambda variables: module.apply(variables, x, mode=Mode.TRAIN, mutable=["batch_stats"])
    variables = jax.jit(functools.partial(module.init, mode=Mode.TRAIN))(jax.random.key(0), x)
    found, updated = jax.jit(run)(variables)

    params, state = trees_of(spec, x, variables)
    expected, new = jax.jit(lambda p, s: apply(spec, p, s, x, Mode.TRAIN))(params, state)
    chex.assert_trees_all_equal(found, expected)
    chex.assert_trees_all_equal(updated.get("batch_stats", {}), to_names(new))


def test_a_linen_detector_gives_the_detections_of_the_functions(detector):
    images = 255 * jax.random.uniform(jax.random.key(3), (2, 32, 32, 3))
    module = linen.Layer(detector, mode=Mode.EVAL)
    variables = module.init(jax.random.key(0), images)
    params, state = trees_of(detector, images, variables)
    expected, _ = apply_detector(detector, params, state, images, Mode.EVAL)
    chex.assert_trees_all_equal(module.apply(variables, images), expected)


class Theirs(nn.Module):
    """A user's network, in which the norm is one line."""

    norm: object

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = self.norm(use_running_average=not train)(x)
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


def test_batch_norm_replaces_linen_batch_norm_in_one_line():
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 3))
    ours = Theirs(functools.partial(linen.Layer, BatchNorm(decay=0.99, reference_batch=8)))
    theirs = Theirs(functools.partial(nn.BatchNorm, momentum=0.99))
    variables = {m: m.init(jax.random.key(0), x, train=True) for m in (ours, theirs)}
    for train in (True, False):
        y = {
            m: m.apply(variables[m], x, train=train, mutable=["batch_stats"])[0]
            for m in (ours, theirs)
        }
        np.testing.assert_allclose(y[ours], y[theirs], atol=1e-4)


def test_a_module_trains_with_optax_and_keeps_its_statistics():
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 3))
    labels = jnp.arange(8) % 3
    model = Theirs(functools.partial(linen.Layer, BatchNorm(norm_batch=2)))
    variables = model.init(jax.random.key(0), x, train=True)
    params, stats = variables["params"], variables["batch_stats"]
    optimizer = optax.adam(1e-2)
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params, stats, opt_state):
        def loss(params):
            logits, new = model.apply(
                {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
            )
            return (
                optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(),
                new["batch_stats"],
            )

        (value, stats_), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state_ = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), stats_, opt_state_, value

    losses = []
    for _ in range(30):
        params, stats, opt_state, value = step(params, stats, opt_state)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0]
    assert float(stats["Layer_0"]["seen"]) == 240


def test_initialization_does_not_update_statistics():
    x = 5.0 + jax.random.normal(jax.random.key(0), (4, 3, 3, 2))
    variables = linen.Layer(BN, mode=Mode.TRAIN).init(jax.random.key(0), x)
    assert float(variables["batch_stats"]["seen"]) == 0


def test_a_module_saves_with_orbax(tmp_path):
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 2))
    variables = linen.Layer(BN, mode=Mode.TRAIN).init(jax.random.key(0), x)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "one", variables)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "one", jax.eval_shape(lambda: variables))
    chex.assert_trees_all_equal(restored, variables)


def test_stateless_norms_need_no_mutable_collection():
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 2))
    spec = LayerNorm(axes="c")
    module = linen.Layer(spec, mode=Mode.TRAIN)
    variables = module.init(jax.random.key(0), x)
    assert list(variables) == ["params"]
    params = NormParams(**variables["params"])
    y = module.apply(variables, x)
    np.testing.assert_array_equal(y, apply_norm(spec, params, None, x, Mode.TRAIN)[0])


@pytest.mark.parametrize("given", [{}, {"mode": Mode.EVAL, "use_running_average": True}])
def test_a_linen_layer_needs_exactly_one_of_mode_and_use_running_average(given):
    with pytest.raises(ValueError, match="either mode or use_running_average"):
        linen.Layer(BN, **given).init(jax.random.key(0), jnp.ones((2, 2, 2, 2)))


def test_init_rejects_a_spec_that_is_not_a_layer():
    with pytest.raises(TypeError, match="spec: 3 is not a layer; expected a norm, ConvNorm, Block"):
        inspect.unwrap(init)(jax.random.key(0), 3)


def test_linen_parameters_are_plain_arrays_by_name(detector):
    images = jnp.ones((2, 32, 32, 3))
    variables = linen.Layer(detector, mode=Mode.TRAIN).init(jax.random.key(0), images)
    flat = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    assert {name.rpartition("/")[2] for name in flat} == {"kernel", "scale", "bias"}
    assert "backbone/stem/norm/scale" in flat
    assert all(isinstance(leaf, jax.Array) for leaf in flat.values())
    is_kernel = lambda path, _: path[-1] == "kernel"
    decayed = flax.traverse_util.path_aware_map(is_kernel, variables["params"])
    assert 0 < sum(jax.tree.leaves(decayed)) < len(flat)
    assert linen.Layer(detector, mode=Mode.TRAIN).tabulate(jax.random.key(0), images)


def test_initialization_needs_no_bound_axis_and_training_does():
    x = jax.random.normal(jax.random.key(0), (2, 4, 3, 3, 2))
    module = linen.Layer(BatchNorm(axis_name="d"), mode=Mode.TRAIN)
    variables = module.init(jax.random.key(0), x[0])
    run = lambda x: module.apply(variables, x, mutable=["batch_stats"])
    y, _ = jax.vmap(run, axis_name="d")(x)
    expected, _ = linen.Layer(BatchNorm(), mode=Mode.TRAIN).apply(
        variables, x.reshape(8, 3, 3, 2), mutable=["batch_stats"]
    )
    np.testing.assert_allclose(y.reshape(8, 3, 3, 2), expected, atol=1e-5)
    with pytest.raises(NameError, match="unbound axis name"):
        run(x[0])


def test_statistics_of_linen_batch_norm_convert_to_ours_and_back():
    x = 2.0 + 3.0 * jax.random.normal(jax.random.key(0), (8, 6, 6, 3))
    theirs = Theirs(functools.partial(nn.BatchNorm, momentum=0.9))
    variables = theirs.init(jax.random.key(0), x, train=True)
    _, new = theirs.apply(variables, x, train=True, mutable=["batch_stats"])
    rename = lambda tree, a, b: {b if k == a else k: v for k, v in tree.items()}
    ours = Theirs(functools.partial(linen.Layer, BatchNorm()))
    params = rename(variables["params"], "BatchNorm_0", "Layer_0")
    stats = from_flax_statistics(rename(new["batch_stats"], "BatchNorm_0", "Layer_0"))
    y = ours.apply({"params": params, "batch_stats": stats}, x, train=False)
    expected = theirs.apply({"params": variables["params"], **new}, x, train=False)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    back = rename(to_flax_statistics(stats), "Layer_0", "BatchNorm_0")
    chex.assert_trees_all_equal(back, new["batch_stats"])


def test_a_linen_norm_can_be_scanned_over_time():
    class Cell(nn.Module):
        @nn.compact
        def __call__(self, carry, x):
            return carry, linen.Layer(BN, mode=Mode.TRAIN)(x)

    over_time = nn.scan(
        Cell,
        variable_broadcast="params",
        variable_carry="batch_stats",
        split_rngs={"params": False},
        in_axes=1,
        out_axes=1,
    )()
    x = jax.random.normal(jax.random.key(0), (4, 5, 3))
    variables = Cell().init(jax.random.key(0), 0.0, x[:, 0])
    (_, y), new = over_time.apply(variables, 0.0, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean(0), 0.0, atol=1e-5)
    (stats,) = new["batch_stats"].values()
    assert float(stats["seen"]) == 20


def test_from_names_names_a_missing_array():
    like, _ = jax.eval_shape(lambda: init_norm(BN, 2))
    with pytest.raises(KeyError, match="no array bias; there are: scale"):
        from_names(like, {"scale": jnp.ones(2)})


def test_parameters_of_older_versions_raise_with_the_conversion():
    x = jnp.ones((2, 2, 2, 2))
    params, _ = init_norm(BN, 2)
    with pytest.raises(ValueError, match="from an older version; convert it by"):
        linen.Layer(BN, mode=Mode.EVAL).apply({"params": {"organ": params}}, x)
