import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.data.augmentation.detector_augment import Augment, augment
from fpnlab.types import Batch

H, W = 40, 48
FLIP = Augment(flip=1.0)
EVERYTHING = Augment(scale=(0.6, 1.8), brightness=0.3, contrast=0.3)
ZOOM = Augment(scale=(0.6, 1.8), keep=0.0)


def rectangles(count, extent=(H, W)):
    """Dark images with one bright rectangle each, and its box; black beyond the extent."""
    random = np.random.default_rng(0)
    images = np.zeros((count, H, W, 3), np.uint8)
    boxes = np.zeros((count, 2, 4), np.float32)
    for i in range(count):
        x1, y1 = random.integers(2, 12, 2)
        x2, y2 = x1 + random.integers(6, 14), y1 + random.integers(6, 14)
        images[i, : extent[0], : extent[1]] = 40
        images[i, y1:y2, x1:x2] = 240
        boxes[i, 0] = x1, y1, x2, y2
    return Batch(
        images=images,
        boxes=boxes,
        classes=np.ones((count, 2), np.int32),
        valid=np.tile([True, False], (count, 1)),
        extent=np.tile(np.array(extent, np.float32), (count, 1)),
        index=np.arange(count, dtype=np.int32),
    )


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("extent", [(H, W), (30, 37), (33, W)])
def test_two_flips_are_the_identity(extent):
    batch = rectangles(8, extent)
    once = augment(FLIP, keys(8), batch)
    assert np.any(np.asarray(once.images) != batch.images)
    chex.assert_trees_all_equal(augment(FLIP, keys(8), once), batch)


def test_a_flip_mirrors_the_picture_and_leaves_its_padding_on_the_right():
    batch = rectangles(8, (30, 37))
    flipped = augment(FLIP, keys(8), batch)
    mirrored = batch.images[:, :30, 36::-1]
    np.testing.assert_array_equal(flipped.images[:, :30, :37], mirrored)
    np.testing.assert_array_equal(flipped.images[:, 30:], 0)
    np.testing.assert_array_equal(flipped.images[:, :, 37:], 0)


def test_augmentation_without_randomness_changes_nothing():
    batch = rectangles(8, (30, 37))
    chex.assert_trees_all_equal(augment(Augment(flip=0.0), keys(8), batch), batch)


@pytest.mark.parametrize("extent", [(H, W), (30, 37)])
def test_boxes_move_with_the_pixels(extent):
    batch = augment(ZOOM, keys(64), rectangles(64, extent))
    # The rectangle's corners lie on pixel edges, so half of 40 to 240 marks them.
    bright = np.asarray(batch.images)[..., 0] > 140
    valid = np.asarray(batch.valid[:, 0])
    seen = 0
    for i in np.flatnonzero(valid & bright.any((1, 2))):
        y, x = np.nonzero(bright[i])
        found = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        np.testing.assert_allclose(batch.boxes[i, 0], found, atol=1)
        seen += 1
    assert seen > 50
    assert not bright[~valid].any()


def test_padding_never_shows_inside_a_view():
    batch = augment(ZOOM, keys(64), rectangles(64, (30, 37)))
    # The picture is nowhere darker than 40, and a mixture with the padding would be.
    np.testing.assert_array_equal(batch.images[..., 0] >= 40, batch.mask)
    np.testing.assert_array_equal(batch.images[..., 0] == 0, ~batch.mask)


def test_the_extent_is_the_zoomed_pictures_cut_to_the_canvas():
    extent = np.asarray(augment(ZOOM, keys(64), rectangles(64, (30, 37))).extent)
    np.testing.assert_array_equal(extent, np.round(extent))
    assert np.all(extent <= [H, W])
    assert extent.min(0)[0] < 24
    np.testing.assert_array_equal(extent.max(0), [H, W])


def test_a_view_depends_on_its_key_alone():
    batch = rectangles(8)
    together = augment(EVERYTHING, keys(8), batch)
    alone = [
        augment(EVERYTHING, keys(8)[i : i + 1], jax.tree.map(lambda x, i=i: x[i : i + 1], batch))
        for i in range(8)
    ]
    stacked = jax.tree.map(lambda *leaves: np.concatenate(leaves), *alone)
    images = np.asarray(together.images, np.int32)
    np.testing.assert_allclose(images, stacked.images.astype(np.int32), atol=1)
    np.testing.assert_allclose(together.boxes, stacked.boxes, atol=1e-4)
    np.testing.assert_array_equal(together.valid, stacked.valid)
    chex.assert_trees_all_equal(together, augment(EVERYTHING, keys(8), batch))
    assert np.any(np.asarray(augment(EVERYTHING, keys(8, 1), batch).images) != together.images)


def test_cropped_boxes_are_dropped_below_the_share_they_must_keep():
    crop = {"flip": 0.5, "scale": (2.5, 2.5)}
    batch = rectangles(64)
    every = augment(Augment(**crop, keep=0.0), keys(64), batch)
    half = augment(Augment(**crop, keep=0.5), keys(64), batch)
    whole = batch.boxes[:, 0]
    zoomed = np.prod(whole[:, 2:] - whole[:, :2], axis=-1) * 2.5**2
    share = np.prod(every.boxes[:, 0, 2:] - every.boxes[:, 0, :2], axis=-1) / zoomed
    np.testing.assert_array_equal(half.valid[:, 0], share >= 0.5)
    np.testing.assert_array_equal(every.valid[:, 0], share > 0)
    assert 5 < np.sum(half.valid) < np.sum(every.valid) <= 64
    assert not np.any(np.asarray(half.boxes)[~np.asarray(half.valid)])
    assert not np.any(half.valid[:, 1])


def test_brightness_scales_and_contrast_keeps_the_mean():
    batch = rectangles(32, (30, 37))
    batch = batch.replace(images=(batch.images / 2).astype(np.float32))
    picture = np.asarray(batch.images)[:, :30, :37]
    mean = picture.mean((1, 2, 3))
    bright = augment(Augment(flip=0.0, brightness=0.4), keys(32), batch).images[:, :30, :37]
    factor = np.asarray(bright).mean((1, 2, 3)) / mean
    np.testing.assert_allclose(bright, picture * factor[:, None, None, None], rtol=1e-4)
    assert 0.6 <= factor.min() < 0.8 < 1.2 < factor.max() <= 1.4
    flat = augment(Augment(flip=0.0, contrast=0.4), keys(32), batch).images[:, :30, :37]
    np.testing.assert_allclose(np.asarray(flat).mean((1, 2, 3)), mean, rtol=1e-4)
    spread = np.asarray(flat).std((1, 2, 3)) / picture.std((1, 2, 3))
    assert 0.6 <= spread.min() < 0.8 < 1.2 < spread.max() <= 1.4


def test_switching_one_augmentation_on_does_not_change_the_draws_of_others():
    batch = rectangles(16)
    zoomed = augment(Augment(scale=(0.6, 1.8)), keys(16), batch)
    jittered = augment(Augment(scale=(0.6, 1.8), brightness=0.3), keys(16), batch)
    chex.assert_trees_all_close(zoomed.boxes, jittered.boxes)
    assert np.any(np.asarray(zoomed.images) != jittered.images)


def test_images_keep_their_type():
    batch = rectangles(2)
    chex.assert_type(augment(EVERYTHING, keys(2), batch).images, jnp.uint8)
    batch = batch.replace(images=batch.images.astype(np.float32))
    chex.assert_type(augment(EVERYTHING, keys(2), batch).images, jnp.float32)


@pytest.mark.parametrize(
    ("field", "value"),
    [("flip", 1.5), ("brightness", -0.1), ("contrast", 2.0), ("keep", -1.0)],
)
def test_augment_rejects_shares_outside_0_to_1(field, value):
    with pytest.raises(ValueError, match=rf"Augment: {field} is {value}; it must be at least 0"):
        Augment(**{field: value})


@pytest.mark.parametrize(
    ("scale", "says"), [((0.0, 1.0), "at least 0.01"), ((2.0, 1.0), "the smaller must be first")]
)
def test_augment_rejects_scales_that_are_not_a_range(scale, says):
    with pytest.raises(ValueError, match=says):
        Augment(scale=scale)


def test_a_box_that_is_not_cropped_stays_valid_whatever_share_must_be_kept():
    batch = rectangles(8)
    for flip in (0.0, 1.0):
        whole = augment(Augment(flip=flip, keep=1.0), keys(8), batch)
        np.testing.assert_array_equal(whole.valid, batch.valid)


def test_the_share_of_mirror_images_is_that_of_the_spec():
    batch = rectangles(2000)
    flipped = augment(Augment(flip=0.2), keys(2000), batch)
    share = (np.asarray(flipped.boxes) != batch.boxes).any((1, 2)).mean()
    assert abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 2000)


def test_pictures_are_zoomed_out_as_often_as_in():
    """The logarithm of the zoom is uniform: 1/2 is as likely as 2."""
    # Pictures of 10 x 12 pixels, of which a zoom of up to 4 fits the canvas.
    zoomed = augment(Augment(scale=(0.25, 4.0)), keys(1000), rectangles(1000, (10, 12)))
    zoom = np.log(np.asarray(zoomed.extent)[:, 1] / 12) / np.log(4)
    # A uniform number from -1 to 1, but for the rounding to whole pixels.
    np.testing.assert_allclose([zoom.min(), zoom.max()], [-1, 1], atol=0.05)
    np.testing.assert_allclose([zoom.mean(), zoom.var()], [0, 1 / 3], atol=0.06)


def test_a_crop_is_drawn_along_each_axis_by_itself_and_reaches_both_ends():
    batch = rectangles(500)
    # A pixel's value is its place: the first row and column say where the crop starts.
    ramp = batch.replace(images=np.zeros_like(batch.images, np.float32))
    ramp.images[..., 0] = np.arange(H)[:, None]
    ramp.images[..., 1] = np.arange(W)
    views = augment(Augment(flip=0.0, scale=(2.0, 2.0), keep=0.0), keys(500), ramp)
    down, right = np.asarray(views.images)[:, 0, 0, :2].T
    assert abs(np.corrcoef(down, right)[0, 1]) < 4 / np.sqrt(500)
    for place, size in ((down, H), (right, W)):
        assert place.min() < 0.05 * size
        assert 0.45 * size < place.max() <= 0.5 * size
