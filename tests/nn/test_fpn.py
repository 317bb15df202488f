"""The feature pyramid: dependencies between levels, odd sizes, and invalid levels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.nn.fpn import Fpn, apply_fpn, init_fpn
from fpnlab.nn.norm_specs import BatchNorm, LayerNorm, NoNorm
from fpnlab.types import Mode

CHANNELS = {2: 3, 3: 4, 4: 5}
SIZES = {2: (9, 7), 3: (5, 4), 4: (3, 2)}


@pytest.fixture
def features(key):
    return {
        level: jax.random.normal(jax.random.fold_in(key, level), (2, *SIZES[level], c))
        for level, c in CHANNELS.items()
    }


@pytest.mark.parametrize(
    "norm", [NoNorm(), BatchNorm(), LayerNorm(axes="hwc")], ids=lambda n: n.kind
)
def test_every_pyramid_map_has_the_channels_of_the_fpn_and_the_size_of_its_level(
    norm, features, key
):
    fpn = Fpn(channels=6, min_level=2, max_level=6, norm=norm)
    params, state = init_fpn(key, fpn, CHANNELS)
    pyramid, new = apply_fpn(fpn, params, state, features, Mode.TRAIN)
    assert {level: p.shape for level, p in pyramid.items()} == {
        2: (2, 9, 7, 6),
        3: (2, 5, 4, 6),
        4: (2, 3, 2, 6),
        5: (2, 2, 1, 6),
        6: (2, 1, 1, 6),
    }
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_information_flows_from_coarse_to_fine_and_not_back(features, key):
    fpn = Fpn(channels=6, min_level=2, max_level=5)
    params, state = init_fpn(key, fpn, CHANNELS)

    def influence(of, on):
        def total(feature):
            pyramid, _ = apply_fpn(fpn, params, state, {**features, of: feature}, Mode.TRAIN)
            return (pyramid[on] ** 2).sum()

        return bool(jnp.abs(jax.grad(total)(features[of])).max() > 0)

    influenced = {of: [on for on in fpn.levels if influence(of, on)] for of in CHANNELS}
    assert influenced == {2: [2], 3: [2, 3], 4: [2, 3, 4, 5]}


def test_the_extra_level_can_start_from_the_backbones_own_map(features, key):
    fpn = Fpn(channels=6, min_level=3, max_level=5, extra_from="c")
    params, state = init_fpn(key, fpn, CHANNELS)
    assert params.output[5].kernel.shape == (3, 3, 5, 6)
    pyramid, _ = apply_fpn(fpn, params, state, features, Mode.TRAIN)
    assert sorted(pyramid) == [3, 4, 5]


def test_without_a_coarser_level_a_map_is_lateral_then_output(features, key):
    fpn = Fpn(channels=6, min_level=4, max_level=4)
    params, state = init_fpn(key, fpn, CHANNELS)
    pyramid, _ = apply_fpn(fpn, params, state, features, Mode.TRAIN)
    lateral = jnp.einsum("bhwi,io->bhwo", features[4], params.lateral[4].kernel[0, 0])
    padded = jnp.pad(lateral, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = params.output[4].kernel
    expected = sum(
        jnp.einsum("bhwi,io->bhwo", padded[:, y : y + 3, x : x + 2], kernel[y, x])
        for y in range(3)
        for x in range(3)
    )
    np.testing.assert_allclose(pyramid[4], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("levels", "message"),
    [((1, 4), "need the backbone's level 1; it has"), ((5, 6), "need the backbone's level 5")],
)
def test_init_fpn_rejects_levels_missing_in_the_backbone(levels, message, key):
    fpn = Fpn(channels=6, min_level=levels[0], max_level=levels[1])
    with pytest.raises(ValueError, match=message):
        init_fpn(key, fpn, CHANNELS)


def test_fpn_rejects_a_min_level_above_the_max_level():
    with pytest.raises(ValueError, match="min_level is 5 and max_level 3"):
        Fpn(min_level=5, max_level=3)


def test_the_first_extra_level_has_no_relu_at_its_input_and_the_second_has(key):
    """arXiv:1708.02002, footnote 2: P6 from the top map, P7 by a ReLU and a convolution of P6."""
    fpn = Fpn(channels=2, min_level=4, max_level=6)
    params, state = init_fpn(key, fpn, CHANNELS)
    features = {4: jax.random.normal(key, (1, 4, 4, 5))}
    # A level whose map is its bias alone: one channel below 0, one above.
    below_and_above = jnp.array([-1.0, 1.0])

    def next_map(bias, level):
        own = params.output[level]
        own = dataclasses.replace(
            own,
            kernel=jnp.zeros_like(own.kernel),
            norm=dataclasses.replace(own.norm, bias=bias),
        )
        changed = dataclasses.replace(params, output={**params.output, level: own})
        pyramid, _ = apply_fpn(fpn, changed, state, features, Mode.TRAIN)
        return pyramid[level + 1].sum()

    heard = lambda level: (jax.grad(next_map)(below_and_above, level) != 0).tolist()
    assert heard(4) == [True, True]
    assert heard(5) == [False, True]


@pytest.mark.parametrize("extra_from", ["p", "c"])
def test_each_norm_counts_the_mask_of_its_level(extra_from, features, key):
    fpn = Fpn(channels=6, min_level=2, max_level=6, norm=BatchNorm(), extra_from=extra_from)
    params, state = init_fpn(key, fpn, CHANNELS)
    mask = np.random.default_rng(0).random((2, 36, 28)) < 0.6
    mask[0, 0, 0] = True
    _, new = apply_fpn(fpn, params, state, features, Mode.TRAIN, mask=jnp.asarray(mask))
    expected = {level: mask[:, :: 2**level, :: 2**level].sum() for level in fpn.levels}
    assert len(set(expected.values())) == 5
    assert {level: norm.count for level, norm in new.output.items()} == expected
    assert {level: norm.count for level, norm in new.lateral.items()} == {
        level: expected[level] for level in CHANNELS
    }
