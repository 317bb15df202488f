"""NNX modules: results of the functions, conventions of Flax."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.nnx import bridge

from fpnlab.adapters import linen
from fpnlab.adapters import nnx as ours
from fpnlab.adapters.trees import from_flax_statistics, to_flax_statistics
from fpnlab.nn.detector import apply_detector
from fpnlab.nn.fpn import Fpn
from fpnlab.nn.norm_layer import apply_norm
from fpnlab.nn.norm_specs import BatchNorm, LayerNorm
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.nn.retina_head import RetinaHead
from fpnlab.types import Mode

BN = BatchNorm()


@pytest.fixture
def x(key):
    return 2.0 + jax.random.normal(key, (4, 3, 3, 2))


def test_an_nnx_norm_equals_its_function_bit_for_bit_and_updates_in_place(x):
    module = ours.Layer(BN, x, rngs=nnx.Rngs(0))
    params, state = module.trees()
    y = module(x, mode=Mode.TRAIN)
    expected, new = apply_norm(BN, params, state, x, Mode.TRAIN)
    np.testing.assert_array_equal(y, expected)
    chex.assert_trees_all_equal(module.trees()[1], new)
    module(x, mode=Mode.EVAL)
    chex.assert_trees_all_equal(module.trees()[1], new)


@pytest.mark.parametrize(
    ("spec", "like", "widths"),
    [
        (BN, jax.ShapeDtypeStruct((1, 2, 2, 4), jnp.float32), 4),
        (
            Fpn(channels=4, min_level=3, max_level=5),
            {3: jnp.zeros((1, 4, 4, 2)), 4: jnp.zeros((1, 2, 2, 6))},
            {3: 2, 4: 6},
        ),
        (
            RetinaHead(depth=1, norm=BN, anchors_per_cell=1, classes=2),
            {3: jnp.zeros((1, 2, 2, 4)), 4: jnp.zeros((1, 1, 1, 4))},
            {3: 4, 4: 4},
        ),
    ],
    ids=["norm", "neck", "head"],
)
def test_an_nnx_layer_can_be_made_from_channels_instead_of_an_input(spec, like, widths):
    modules = [ours.Layer(spec, given, rngs=nnx.Rngs(0)) for given in (like, widths)]
    chex.assert_trees_all_equal(*(module.trees() for module in modules))


def test_an_nnx_detector_gives_the_detections_of_the_functions(detector):
    images = 255 * jax.random.uniform(jax.random.key(3), (2, 32, 32, 3))
    module = ours.Layer(detector, images, mode=Mode.EVAL, rngs=nnx.Rngs(0))
    expected, _ = apply_detector(detector, *module.trees(), images, Mode.EVAL)
    chex.assert_trees_all_equal(module(images), expected)


class Theirs(nnx.Module):
    """A user's network, in which the norm is one line."""

    def __init__(self, norm, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.norm = norm(rngs)
        self.dense = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.dense(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


def our_norm(rngs):
    return ours.Layer(BatchNorm(decay=0.99, reference_batch=8), 8, rngs=rngs)


def test_batch_norm_replaces_nnx_batch_norm_in_one_line():
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 3))
    mine = Theirs(our_norm, nnx.Rngs(0))
    other = Theirs(lambda rngs: nnx.BatchNorm(8, momentum=0.99, rngs=rngs), nnx.Rngs(0))
    other.conv.kernel[...] = mine.conv.kernel[...]
    other.dense.kernel[...] = mine.dense.kernel[...]
    mine.train()
    other.train()
    np.testing.assert_allclose(mine(x), other(x), atol=1e-4)
    mine.eval()
    other.eval()
    np.testing.assert_allclose(mine(x), other(x), atol=1e-4)


def test_a_module_trains_with_an_nnx_optimizer():
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 3))
    labels = jnp.arange(8) % 3
    model = Theirs(our_norm, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    losses = [float(step(model, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.8 * losses[0]
    assert float(model.norm.trees()[1].seen) == 480


def test_a_module_saves_with_orbax(x, tmp_path):
    module = ours.Layer(BN, x, mode=Mode.TRAIN, rngs=nnx.Rngs(0))
    module(x)
    pure = nnx.to_pure_dict(nnx.state(module))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "one", pure)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "one", jax.eval_shape(lambda: pure))
    chex.assert_trees_all_equal(restored, pure)


def test_stateless_norms_work_as_nnx_modules(x):
    module = ours.Layer(LayerNorm(axes="c"), x, use_running_average=True, rngs=nnx.Rngs(0))
    expected, _ = apply_norm(LayerNorm(axes="c"), *module.trees(), x, Mode.TRAIN)
    np.testing.assert_array_equal(module(x), expected)


NET = ResNet(depths=(1,), widths=(4,), stem=Stem(size=3, stride=2, pool=False), norm=BN)
SPECS = {"batch_norm": BN, "layer_norm": LayerNorm(axes="c"), "resnet": NET}
IMAGES = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))


@pytest.mark.parametrize("name", SPECS)
def test_nnx_tabulate_counts_the_parameters_of(name):
    module = ours.Layer(SPECS[name], IMAGES, rngs=nnx.Rngs(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(module.trees()))
    options = {"color_system": None, "width": 200}
    table = nnx.tabulate(module, IMAGES, console_kwargs=options)
    assert f"Total Parameters: {size:,} " in table


def test_nnx_tabulate_counts_the_parameters_of_a_detector(detector):
    images = jnp.zeros((1, 32, 32, 3))
    module = ours.Layer(detector, images, mode=Mode.EVAL, rngs=nnx.Rngs(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(module.trees()))
    options = {"color_system": None, "width": 200}
    assert f"Total Parameters: {size:,} " in nnx.tabulate(module, images, console_kwargs=options)


@pytest.mark.parametrize("name", SPECS)
def test_the_bridge_to_linen_trains_a_module_of_nnx_as_the_linen_module(name):
    module = bridge.ToLinen(ours.Layer, args=(SPECS[name], IMAGES))
    twin = linen.Layer(SPECS[name], use_running_average=False)
    variables = module.init(jax.random.key(0), IMAGES)
    like = twin.init(jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, like)
    found = module.apply(variables, IMAGES, mutable=["batch_stats"])
    chex.assert_trees_all_equal(found, twin.apply(variables, IMAGES, mutable=["batch_stats"]))


@pytest.mark.parametrize("name", SPECS)
def test_the_bridge_to_nnx_trains_a_module_of_linen_as_the_nnx_module(name):
    module = bridge.ToNNX(linen.Layer(SPECS[name], use_running_average=False), rngs=nnx.Rngs(0))
    module = bridge.lazy_init(module, IMAGES)
    twin = ours.Layer(SPECS[name], IMAGES, rngs=nnx.Rngs(0))
    nnx.update(twin, nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    chex.assert_trees_all_equal(module(IMAGES, mutable=["batch_stats"]), twin(IMAGES))
    statistics = [nnx.to_pure_dict(nnx.state(m, nnx.BatchStat)) for m in (module, twin)]
    chex.assert_trees_all_equal(*statistics)


def test_statistics_of_nnx_batch_norm_convert_to_ours_and_back():
    other = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    other.scale[...] = jnp.array([1.0, 2.0, 3.0])
    other(IMAGES)
    saved = nnx.to_pure_dict(nnx.state(other))
    module = ours.Layer(BN, 3, rngs=nnx.Rngs(0))
    nnx.update(module, from_flax_statistics(saved))
    module.eval()
    other.eval()
    np.testing.assert_allclose(module(IMAGES), other(IMAGES), atol=1e-6)
    chex.assert_trees_all_equal(to_flax_statistics(nnx.to_pure_dict(nnx.state(module))), saved)


def test_variables_of_nnx_have_the_names_of_linen():
    module = ours.Layer(NET, IMAGES, rngs=nnx.Rngs(0))
    variables = linen.Layer(NET, use_running_average=False).init(jax.random.key(0), IMAGES)
    for kind, collection in ((nnx.Param, "params"), (nnx.BatchStat, "batch_stats")):
        named = nnx.to_pure_dict(nnx.state(module, kind))
        assert jax.tree.map(jnp.shape, named) == jax.tree.map(jnp.shape, variables[collection])
