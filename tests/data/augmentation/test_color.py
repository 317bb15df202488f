"""Color jitter: closed forms, and that both augmentations draw alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.data.augmentation.color import LUMA, jitter
from fpnlab.data.augmentation.detector_augment import Augment, augment
from fpnlab.types import Batch

KEYS = jax.random.split(jax.random.key(3), 32)
IMAGE = np.random.default_rng(0).integers(60, 140, (6, 5, 3)).astype(np.float32)


def run(image=IMAGE, **limits):
    limits = {"brightness": 0.0, "contrast": 0.0} | limits
    views = jax.jit(jax.vmap(functools.partial(jitter, image=jnp.array(image), **limits)))
    return np.asarray(views(KEYS))


def factors_of(views, center):
    """The factor of each view's distances from ``center``, all of one view being equal."""
    far = np.abs(IMAGE - center) > 5
    found = ((views - center) / np.where(far, IMAGE - center, 1))[:, far]
    np.testing.assert_allclose(found, found[:, :1].repeat(found.shape[1], 1), rtol=1e-3)
    return found[:, 0]


GRAY = (IMAGE @ np.array(LUMA, np.float32))[..., None].repeat(3, -1)
CENTERS = {"brightness": np.zeros_like(IMAGE), "contrast": IMAGE.mean(), "saturation": GRAY}


@pytest.mark.parametrize("name", CENTERS)
def test_each_change_multiplies_the_distances_from_its_center(name):
    factors = factors_of(run(**{name: 0.4}), CENTERS[name])
    assert 0.6 <= factors.min() < 0.75
    assert 1.25 < factors.max() <= 1.4


def test_gray_images_do_not_change_with_saturation():
    np.testing.assert_allclose(run(GRAY, saturation=0.9)[0], GRAY, rtol=1e-5)


def test_limits_of_0_change_nothing():
    np.testing.assert_array_equal(run(), np.tile(IMAGE, (32, 1, 1, 1)))


def test_values_stay_between_0_and_255():
    found = run(IMAGE * 1.8, brightness=1.0, contrast=1.0, saturation=1.0)
    assert found.min() == 0
    assert found.max() == 255


def test_switching_one_change_on_does_not_change_the_draws_of_others():
    alone, both = run(brightness=0.3), run(brightness=0.3, saturation=0.3)
    gray = lambda views: views @ np.array(LUMA, np.float32)
    np.testing.assert_allclose(gray(alone), gray(both), rtol=1e-4)
    assert np.abs(alone - both).max() > 1


def test_the_augmentation_of_detectors_draws_the_same_jitter():
    picture, extent = (slice(None), slice(4), slice(3)), np.array([4.0, 3.0], np.float32)
    images = np.zeros((32, *IMAGE.shape), np.float32)
    images[picture] = IMAGE[:4, :3]
    batch = Batch(
        images=images,
        boxes=np.zeros((32, 1, 4), np.float32),
        classes=np.zeros((32, 1), np.int32),
        valid=np.zeros((32, 1), bool),
        extent=np.tile(extent, (32, 1)),
        index=np.arange(32, dtype=np.int32),
    )
    spec = Augment(flip=0.0, brightness=0.3, contrast=0.4)
    mask = np.zeros(IMAGE.shape[:2], bool)
    mask[:4, :3] = True
    views = jax.vmap(lambda key, x: jitter(key, x, brightness=0.3, contrast=0.4, mask=mask))
    found = views(KEYS, images)
    expected = augment(spec, KEYS, batch).images
    np.testing.assert_allclose(found[picture], expected[picture], rtol=1e-5)
