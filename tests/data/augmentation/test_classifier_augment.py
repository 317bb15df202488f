"""Random views of labeled images: closed forms, keys, and what depends on the batch."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.data.augmentation.classifier_augment import AugmentImages, augment_images
from fpnlab.types import LabeledBatch

H, W = 9, 12
NOTHING = AugmentImages(flip=0.0, pad=0)
VIEW = AugmentImages(
    pad=2, brightness=0.3, contrast=0.3, saturation=0.3, cutout=3, mixup=0.0, fill=10.0
)
MIXUP = AugmentImages(flip=1.0, pad=0, mixup=0.5)


def images(count=64):
    """Images in which every value but those in the middle is another one, none above 200."""
    y, x, c = np.indices((H, W, 3))
    own = (5 * np.arange(count) % 23).reshape(-1, 1, 1, 1)
    return LabeledBatch(
        images=(20 + own + 13 * y + 2 * x + 9 * c).astype(np.uint8),
        labels=(np.arange(count) % 4).astype(np.int32),
        index=np.arange(count, dtype=np.int32),
    )


def keys(count=64, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def views(spec, batch=None, seed=0, **options):
    batch = images() if batch is None else batch
    return jax.device_get(augment_images(spec, keys(len(batch.labels), seed), batch, **options))


def test_augmentation_without_randomness_changes_nothing():
    chex.assert_trees_all_equal(views(NOTHING), images())
    floats = dataclasses.replace(images(), images=images().images.astype(np.float32) + 0.25)
    chex.assert_trees_all_equal(views(NOTHING, floats), floats)


def test_a_flip_mirrors_left_and_right():
    found = views(dataclasses.replace(NOTHING, flip=1.0))
    np.testing.assert_array_equal(found.images, images().images[:, :, ::-1])
    chex.assert_trees_all_equal(found.labels, images().labels)
    half = views(dataclasses.replace(NOTHING, flip=0.5))
    flipped = (half.images == images().images[:, :, ::-1]).all((1, 2, 3))
    same = (half.images == images().images).all((1, 2, 3))
    assert np.all(flipped != same)
    assert 20 < flipped.sum() < 44


def test_a_crop_is_one_of_the_shifts_each_equally_often():
    spec = dataclasses.replace(NOTHING, pad=2, fill=10.0)
    batch = jax.tree.map(lambda leaf: np.tile(leaf[:1], (500,) + (1,) * (leaf.ndim - 1)), images())
    padded = np.pad(batch.images[0], ((2, 2), (2, 2), (0, 0)), constant_values=10)
    shifts = np.stack([padded[i : i + H, j : j + W] for i in range(5) for j in range(5)])
    found = views(spec, batch).images
    equal = (found[:, None] == shifts).all((2, 3, 4))
    np.testing.assert_array_equal(equal.sum(1), 1)
    assert 6 <= equal.sum(0).min() <= equal.sum(0).max() <= 38  # 20 expected; 4 deviations


@pytest.mark.parametrize("side", [1, 2, 3])
def test_cutout_fills_a_square_around_a_random_pixel_cut_at_the_edges(side):
    spec = dataclasses.replace(NOTHING, cutout=side, fill=255.0)
    batch = images(400)
    found = views(spec, batch).images
    np.testing.assert_array_equal(found[found != 255], batch.images[found != 255])
    cut = (found == 255).all(-1)
    squares = set()
    for y in range(H):
        for x in range(W):
            square = np.zeros((H, W), bool)
            top, left = y - side // 2, x - side // 2
            square[max(top, 0) : top + side, max(left, 0) : left + side] = True
            squares.add(square.tobytes())
    drawn = {mask.tobytes() for mask in cut}
    assert drawn <= squares
    # 400 draws of 108 places leave 2 or 3 of them out.
    assert len(drawn) > 0.9 * len(squares)


def test_fill_is_the_pixel_mean_of_the_classifier():
    spec = AugmentImages(flip=0.0, pad=0, cutout=30)
    floats = dataclasses.replace(images(), images=images().images.astype(np.float32))
    found = views(spec, floats).images
    assert (found == 127.5).all((1, 2, 3)).any()
    assert views(spec).images.max() == 128


def test_fill_can_be_a_color():
    color = (124.0, 116.0, 104.0)
    found = views(AugmentImages(flip=0.0, pad=0, cutout=3, fill=color)).images
    filled = (found == np.array(color)).all(-1)
    assert filled.any((1, 2)).all()
    np.testing.assert_array_equal(found[~filled], images().images[~filled])


def test_colors_are_changed_before_pixels_are_filled():
    spec = AugmentImages(flip=0.0, pad=2, brightness=0.5, fill=10.0)
    dark = dataclasses.replace(images(), images=np.full((64, H, W, 3), 100, np.uint8))
    found = views(spec, dark).images
    of_picture = found[:, H // 2, W // 2, 0]
    assert len(np.unique(of_picture)) > 20
    inside = found == of_picture[:, None, None, None]
    np.testing.assert_array_equal(found[~inside], 10)


def test_a_view_depends_on_its_key_alone():
    batch = images(6)
    together = views(VIEW, batch)
    for i in range(6):
        alone = jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], batch)
        found = augment_images(VIEW, keys(6)[i : i + 1], alone)
        np.testing.assert_array_equal(found.images[0], together.images[i])
    chex.assert_trees_all_equal(views(VIEW, batch), together)
    assert np.any(views(VIEW, batch, seed=1).images != together.images)


def test_switching_one_augmentation_on_does_not_change_the_draws_of_others():
    crops = views(AugmentImages(pad=2))
    same = views(AugmentImages(pad=2, cutout=2, mixup=0.0, fill=127.5))
    kept = (same.images != 128).all(-1)
    np.testing.assert_array_equal(crops.images[kept], same.images[kept])
    assert kept.mean() < 1


@pytest.fixture(scope="module")
def mixed():
    """Mirrored and mixed images, and the share that each keeps of itself."""
    batch = dataclasses.replace(images(), images=images().images.astype(np.float32))
    found = views(MIXUP, batch, classes=4)
    return found, found.labels[np.arange(64), batch.labels]


def test_mixup_mixes_each_view_and_label_with_the_next_by_one_share(mixed):
    found, share = mixed
    flipped, hard = images().images[:, :, ::-1].astype(np.float32), np.eye(4)[images().labels]
    mix = lambda share, x: share * x + (1 - share) * np.roll(x, -1, 0)
    np.testing.assert_allclose(found.labels, mix(share[:, None], hard), atol=1e-6)
    np.testing.assert_allclose(found.images, mix(share[:, None, None, None], flipped), rtol=1e-5)
    np.testing.assert_array_equal(found.index, np.arange(64))
    assert found.labels.dtype == np.float32


@pytest.mark.parametrize("alpha", [0.2, 4.0])
def test_the_shares_of_mixup_are_a_beta_distribution(alpha):
    batch = jax.tree.map(lambda leaf: leaf[:, :1, :1] if leaf.ndim == 4 else leaf, images(2000))
    found = views(dataclasses.replace(MIXUP, mixup=alpha), batch, classes=4)
    share = found.labels[np.arange(2000), batch.labels]
    np.testing.assert_allclose(share.mean(), 0.5, atol=0.05)
    np.testing.assert_allclose(share.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.1)


def test_labels_that_are_shares_already_are_mixed_alike(mixed):
    soft = dataclasses.replace(images(), labels=np.eye(4, dtype=np.float32)[images().labels])
    np.testing.assert_allclose(views(MIXUP, soft).labels, mixed[0].labels, rtol=1e-6)


def test_a_smaller_batch_changes_only_what_the_last_image_is_mixed_with(mixed):
    found, share = mixed
    two = jax.tree.map(lambda leaf: leaf[:2].astype(np.float32), images())
    two = dataclasses.replace(two, labels=images().labels[:2])
    part = jax.device_get(augment_images(MIXUP, keys(64)[:2], two, classes=4))
    np.testing.assert_allclose(part.images[0], found.images[0], rtol=1e-6)
    first, last = two.images[:, :, ::-1]
    np.testing.assert_allclose(part.images[1], share[1] * last + (1 - share[1]) * first, rtol=1e-5)


def test_mixup_of_class_numbers_needs_the_number_of_classes():
    with pytest.raises(ValueError, match="mixup needs the number of classes; give classes"):
        views(MIXUP)


@pytest.mark.parametrize("spec", [VIEW, MIXUP], ids=["view", "mixup"])
def test_images_keep_their_type(spec):
    for dtype in (jnp.uint8, jnp.float32, jnp.bfloat16):
        batch = dataclasses.replace(images(2), images=jnp.asarray(images(2).images, dtype))
        found = jax.eval_shape(lambda batch: augment_images(spec, keys(2), batch, classes=4), batch)
        assert found.images.dtype == dtype


def test_jit_equals_eager():
    compiled = views(VIEW, images(6))
    eager = augment_images.__wrapped__(VIEW, keys(6), images(6))
    difference = compiled.images.astype(int) - np.asarray(eager.images, int)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("flip", 1.5, "at least 0 and at most 1"),
        ("saturation", -0.1, "at least 0 and at most 1"),
        ("pad", -1, "at least 0"),
        ("cutout", -2, "at least 0"),
        ("mixup", -0.2, "at least 0"),
        ("fill", 256.0, "at least 0 and at most 255"),
    ],
)
def test_augment_images_rejects_values_out_of_bounds(field, value, says):
    with pytest.raises(ValueError, match=rf"AugmentImages: {field} is {value}; it must be {says}"):
        AugmentImages(**{field: value})
