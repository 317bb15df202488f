"""Backbones: twins, gates, scanned and rematerialized blocks, norms at every position."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.backbone import apply_backbone, init_backbone
from fpnlab.nn.block import Gate
from fpnlab.nn.convnext import ConvNeXt
from fpnlab.nn.mlp import Mlp
from fpnlab.nn.norm_specs import BatchNorm, FrozenBatchNorm, LayerNorm, NoNorm
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.types import Mode
from tests.ops.norm_cases import ARMS

STEM = Stem(size=3, stride=1, pool=False)
NETWORKS = {
    "basic": ResNet(depths=(2, 3), widths=(4, 8), stem=STEM, norm=BatchNorm()),
    "bottleneck": ResNet(
        block="bottleneck", depths=(2, 2), widths=(4, 8), stem=STEM, norm=BatchNorm(), groups=2
    ),
    "preactivation": ResNet(
        depths=(2, 2), widths=(4, 8), stem=STEM, norm=BatchNorm(), preactivation=True
    ),
    "deep stem": ResNet(
        depths=(1, 1),
        widths=(4, 8),
        stem=Stem(size=3, layers=3, pool=False),
        shortcut="pooled_projection",
        norm=BatchNorm(),
    ),
    "convnext": ConvNeXt(depths=(2, 2), widths=(4, 8), patch=2, norm=BatchNorm(), layer_scale=0.5),
    "mlp": Mlp(inputs=192, depths=(2, 2), widths=(4, 8), norm=BatchNorm()),
}

NORMS = {arm.norm.kind + getattr(arm.norm, "axes", ""): arm.norm for arm in ARMS.values()}
"""One norm of each kind."""


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def network(request):
    return request.param


@pytest.fixture
def images(key):
    return jax.random.normal(key, (4, 8, 8, 3))


def open_branches(params):
    """The parameters with scales of 0.5 in place of the zeros at the end of branches."""
    half = lambda path, leaf: jnp.where(leaf == 0, 0.5, leaf) if path[-1].name == "scale" else leaf
    return jax.tree_util.tree_map_with_path(half, params)


def ones(count):
    return Gate(**{field: jnp.ones(count) for field in Gate.__dataclass_fields__})


def output_of(network, params, state, images, **options):
    features, _ = apply_backbone(network, params, state, images, Mode.TRAIN, **options)
    return features[max(features)]


def test_the_plain_twin_has_the_same_kernels_and_no_skip(network, key):
    plain = dataclasses.replace(network, skip=False)
    params, twin = (init_backbone(key, spec)[0] for spec in (network, plain))
    for stage, plain_stage in zip(params.stages, twin.stages):
        for block, plain_block in zip(stage, plain_stage):
            assert plain_block.shortcut is None
            assert plain_block.scale is None
            kernels = lambda block: [layer.kernel for layer in block.branch]
            chex.assert_trees_all_equal(kernels(block), kernels(plain_block))
    chex.assert_trees_all_equal(params.stem.kernel, twin.stem.kernel)


def test_the_plain_twin_of_a_network_with_stochastic_depth_drops_nothing(network, key, images):
    plain = dataclasses.replace(network, skip=False)
    params, state = init_backbone(key, plain)
    dropping = dataclasses.replace(plain, drop_path=0.9)
    y = output_of(plain, params, state, images)
    assert jnp.abs(y).max() > 0
    np.testing.assert_array_equal(output_of(dropping, params, state, images, key=key), y)


def test_gates_of_one_change_nothing(network, key, images):
    params, state = init_backbone(key, network)
    params = open_branches(params)
    run = lambda gates: lambda p: output_of(network, p, state, images, gates=gates).sum()
    count = len(network.layout.blocks)
    expected, found = (jax.value_and_grad(run(gates))(params) for gates in (None, ones(count)))
    chex.assert_trees_all_close(expected, found, rtol=1e-4, atol=1e-5)


def test_gradient_gates_change_gradients_alone(network, key, images):
    params, state = init_backbone(key, network)
    params = open_branches(params)
    count = len(network.layout.blocks)
    closed = dataclasses.replace(
        ones(count), branch_gradient=jnp.zeros(count).at[0].set(1), skip_gradient=jnp.zeros(count)
    )
    run = lambda gates: lambda x: (output_of(network, params, state, x, gates=gates) ** 2).sum()
    expected, found = (jax.value_and_grad(run(gates))(images) for gates in (ones(count), closed))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    assert jnp.abs(expected[1]).max() > 0
    assert jnp.abs(found[1]).max() == 0


def test_a_deleted_block_of_equal_shape_passes_its_input_on(network, key, images):
    params, state = init_backbone(key, network)
    params = open_branches(params)
    for i, block in enumerate(network.layout.blocks):
        if block.changes_shape:
            continue
        gates = ones(len(network.layout.blocks))
        gates = dataclasses.replace(gates, branch=gates.branch.at[i].set(0))
        changed = jax.tree.map(jnp.asarray, params)
        numbers = iter(range(len(network.layout.blocks)))
        other = lambda block, i=i, numbers=numbers: (
            jax.tree.map(lambda leaf: leaf + 1.0, block) if next(numbers) == i else block
        )
        changed = dataclasses.replace(
            params, stages=tuple(tuple(map(other, stage)) for stage in params.stages)
        )
        run = lambda params, gates=gates: output_of(network, params, state, images, gates=gates)
        np.testing.assert_allclose(run(params), run(changed), rtol=1e-5, atol=1e-6)


def test_a_deleted_block_of_a_plain_network_is_the_identity(key, images):
    plain = dataclasses.replace(NETWORKS["basic"], skip=False)
    params, state = init_backbone(key, plain)
    shallow = dataclasses.replace(plain, depths=(1, 3))
    gates = dataclasses.replace(ones(5), branch=jnp.ones(5).at[1].set(0))
    fewer = lambda tree: dataclasses.replace(tree, stages=(tree.stages[0][:1], tree.stages[1]))
    expected = output_of(shallow, fewer(params), fewer(state), images)
    found = output_of(plain, params, state, images, gates=gates)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_another_number_of_gates_than_of_blocks_is_an_error(network, key, images):
    params, state = jax.eval_shape(lambda: init_backbone(key, network))
    count = len(network.layout.blocks)
    with pytest.raises(ValueError, match=rf"expected \({count},\), one factor for each block"):
        jax.eval_shape(lambda p, s: output_of(network, p, s, images, gates=ones(9)), params, state)


@pytest.mark.parametrize("fields", [{"repeat": "scanned"}, {"rematerialize": True}], ids=str)
def test_scanned_and_rematerialized_blocks_compute_the_same(fields, network, key, images):
    network = dataclasses.replace(network, depths=tuple(4 for _ in network.depths))
    params, state = init_backbone(key, network)
    params = open_branches(params)
    other = dataclasses.replace(network, **fields)

    def run(spec):
        def loss(params, images):
            features, new = apply_backbone(spec, params, state, images, Mode.TRAIN)
            return (features[max(features)] ** 2).mean(), new

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, images)

    chex.assert_trees_all_close(run(network), run(other), rtol=1e-3, atol=1e-4)


def test_equal_blocks_are_one_scan(key, images):
    network = dataclasses.replace(NETWORKS["basic"], depths=(4, 4), repeat="scanned")
    params, state = init_backbone(key, network)
    text = str(jax.make_jaxpr(lambda x: output_of(network, params, state, x))(images))
    assert text.count("scan[") == 2


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_every_norm_fits_every_position(norm, network, images):
    if isinstance(norm, FrozenBatchNorm):
        pytest.skip("has no initial statistics")
    if isinstance(network, Mlp) and norm.kind == "instance_norm":
        pytest.skip("one value in each set of statistics")
    fields = [f.name for f in dataclasses.fields(network) if f.name.endswith("norm")]
    for field in fields:
        if field == "stem_norm" and getattr(network, "preactivation", False):
            continue
        if field == "output_norm" and not getattr(network, "preactivation", True):
            continue
        spec = dataclasses.replace(network, **{field: norm})
        assert norm in spec.norm_positions.values() or field == "shortcut_norm"
        run = lambda key, x, spec=spec: output_of(spec, *init_backbone(key, spec), x)
        y = jax.eval_shape(run, jax.random.key(0), images)
        assert y.shape == (4, *y.shape[1:3], spec.channels[max(spec.channels)])


def test_output_norms_are_those_of_the_used_levels(key):
    network = NETWORKS["preactivation"]
    made = [init_backbone(key, network, levels)[0].outputs for levels in (None, range(0, 5), [0])]
    assert [list(outputs) for outputs in made] == [[1], [0, 1], [0]]


def test_images_of_another_size_than_the_inputs_of_an_mlp_are_an_error(key):
    network = NETWORKS["mlp"]
    params, state = init_backbone(key, network)
    with pytest.raises(ValueError, match=r"16x8 have 384 values.* 192 inputs; use inputs = 384"):
        output_of(network, params, state, jnp.zeros((2, 16, 8, 3)))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"depths": (1, 1, 1)}, "depths has 3 stages and widths 2"),
        ({"depths": (), "widths": ()}, "depths has 0 stages; it must have 1 to 16"),
        ({"groups": 2}, "a basic block has neither; use block = 'bottleneck'"),
        ({"block": "bottleneck", "width_per_group": 3}, "widths has 4: 4 . 1 groups . 3 / 64"),
        (
            {"block": "bottleneck", "groups": 2, "width_per_group": 8},
            "the 1 channels of the 3x3 convolution do not split into 2 groups; these do: 1",
        ),
        ({"preactivation": True, "stem_norm": NoNorm()}, "stem_norm is given"),
        ({"output_norm": NoNorm()}, "set preactivation = true"),
        ({"preactivation": True, "branch_scale": "zero_last"}, "use branch_scale = 'skip_init'"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_fields_of_a_resnet_that_do_not_fit_are_an_error(fields, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(NETWORKS["basic"], **fields)


def test_a_resnet_of_layer_norms_has_no_running_statistics(key):
    network = dataclasses.replace(NETWORKS["convnext"], norm=LayerNorm(axes="c"))
    assert not jax.tree.leaves(init_backbone(key, network)[1])
