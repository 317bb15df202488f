"""Linen modules: the numbers of the functions, and the manners of Flax."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from fpnlab.adapters import linen
from fpnlab.model.block import Block
from fpnlab.model.detector import apply_detector
from fpnlab.model.norm import BatchNorm, GroupNorm, LayerNorm, apply_norm
from fpnlab.types import Mode

BN = BatchNorm()


def organs(detector):
    """Every kind of organ, with an input and the options its module needs."""
    x = jax.random.normal(jax.random.key(1), (2, 16, 16, 4))
    maps = {2: x, 3: x[:, ::2, ::2]}
    pyramid = {3: jax.random.normal(jax.random.key(2), (2, 4, 4, 8)), 4: jnp.ones((2, 2, 2, 8))}
    images = 255 * jax.random.uniform(jax.random.key(3), (2, 32, 32, 3))
    block = Block(
        kind="basic", inputs=4, width=8, stride=2, norm=BN, last_norm=BN, shortcut_norm=BN
    )
    neck = dataclasses.replace(detector.neck, min_level=2, max_level=4)
    return {
        "batch_norm": (BN, x, {}),
        "group_norm": (GroupNorm(), x, {}),
        "block": (block, x, {}),
        "backbone": (detector.backbone, images, {}),
        "neck": (neck, maps, {}),
        "head": (detector.head, pyramid, {"sizes": {"anchors": 2, "classes": 3}}),
        "detector": (detector, images, {}),
    }


NAMES = ("batch_norm", "group_norm", "block", "backbone", "neck", "head", "detector")


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_its_functions_to_the_bit(name, detector):
    spec, x, options = organs(detector)[name]
    module = linen.Organ(spec, **options)
    run = lambda variables: module.apply(variables, x, mode=Mode.TRAIN, mutable=["batch_stats"])
    variables = jax.jit(functools.partial(module.init, mode=Mode.TRAIN))(jax.random.key(0), x)
    found, updated = jax.jit(run)(variables)

    this = linen.organ(spec, x, options.get("sizes", {}))
    params, state = variables["params"]["organ"], variables["batch_stats"]["organ"]
    *expected, new = jax.jit(lambda p, s: this.apply(p, s, x, Mode.TRAIN))(params, state)
    chex.assert_trees_all_equal(found, expected[0] if len(expected) == 1 else tuple(expected))
    chex.assert_trees_all_equal(updated["batch_stats"]["organ"], new)


def test_a_detector_of_the_module_is_the_detector_of_the_function(detector):
    images = 255 * jax.random.uniform(jax.random.key(3), (2, 32, 32, 3))
    module = linen.Organ(detector, mode=Mode.EVAL)
    variables = module.init(jax.random.key(0), images)
    params, state = variables["params"]["organ"], variables["batch_stats"]["organ"]
    expected, _ = apply_detector(detector, params, state, images, Mode.EVAL)
    chex.assert_trees_all_equal(module.apply(variables, images), expected)


class Theirs(nn.Module):
    """Somebody's network, in which the norm is one line."""

    norm: object

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        x = self.norm(use_running_average=not train)(x)
        return nn.Dense(3)(nn.relu(x).mean((1, 2)))


def test_one_line_puts_our_batch_norm_into_somebodys_model():
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 3))
    ours = Theirs(functools.partial(linen.Organ, BatchNorm(decay=0.99, reference_batch=8)))
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
    model = Theirs(functools.partial(linen.Organ, BatchNorm(norm_batch=2)))
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
    assert float(stats["Organ_0"]["organ"].seen) == 240


def test_initialising_is_no_step_of_training():
    x = 5.0 + jax.random.normal(jax.random.key(0), (4, 3, 3, 2))
    variables = linen.Organ(BN, mode=Mode.TRAIN).init(jax.random.key(0), x)
    assert float(variables["batch_stats"]["organ"].seen) == 0


def test_a_module_saves_with_orbax(tmp_path):
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 2))
    variables = linen.Organ(BN, mode=Mode.TRAIN).init(jax.random.key(0), x)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "one", variables)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "one", jax.eval_shape(lambda: variables))
    chex.assert_trees_all_equal(restored, variables)


def test_stateless_norms_need_no_mutable_collection():
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 2))
    spec = LayerNorm(axes="c")
    module = linen.Organ(spec, mode=Mode.TRAIN)
    variables = module.init(jax.random.key(0), x)
    y = module.apply(variables, x, mutable=["batch_stats"])[0]
    params = variables["params"]["organ"]
    np.testing.assert_array_equal(y, apply_norm(spec, params, None, x, Mode.TRAIN)[0])


@pytest.mark.parametrize("given", [{}, {"mode": Mode.EVAL, "use_running_average": True}])
def test_a_mode_is_said_once(given):
    with pytest.raises(ValueError, match="either mode or use_running_average"):
        linen.Organ(BN, **given).init(jax.random.key(0), jnp.ones((2, 2, 2, 2)))


def test_what_is_no_organ_is_refused():
    with pytest.raises(TypeError, match="no organ has the spec 3; give a norm, Block"):
        linen.Organ(3, mode=Mode.EVAL).init(jax.random.key(0), jnp.ones((2, 2, 2, 2)))
