import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.data.sources import scenes
from fpnlab.data.sources.scenes import CLASS_NAMES, Scenes, load_scenes, scene

SMALL = Scenes(image_size=32, train_size=700, test_size=70)


@pytest.fixture(scope="module")
def small():
    return load_scenes(SMALL)


def objects(batch):
    """Boxes, classes and the image numbers of all objects."""
    image, row = np.nonzero(batch.valid)
    return batch.boxes[image, row], batch.classes[image, row], image


def test_splits_have_the_shapes_of_their_spec(small):
    assert small.class_names == CLASS_NAMES
    for batch, count in ((small.train, 700), (small.test, 70)):
        chex.assert_shape(batch.images, (count, 32, 32, 3))
        chex.assert_shape([batch.boxes[..., 0], batch.classes, batch.valid], (count, 4))
        chex.assert_type(
            [batch.images, batch.boxes, batch.classes, batch.valid, batch.extent, batch.index],
            [np.uint8, np.float32, np.int32, bool, np.float32, np.int32],
        )
        np.testing.assert_array_equal(batch.index, np.arange(count))
        assert np.all(batch.extent == 32)


def test_an_image_does_not_depend_on_how_many_are_drawn(small):
    few = load_scenes(Scenes(image_size=32, train_size=3, test_size=70)).train
    chex.assert_trees_all_equal(few, jax.tree.map(lambda leaf: leaf[:3], small.train))


def test_vmap_equals_the_loop(key):
    draw = jax.jit(functools.partial(scene, SMALL))
    keys = jax.random.split(key, 4)
    together = jax.jit(jax.vmap(functools.partial(scene, SMALL)))(keys)
    for i in range(4):
        alone = draw(keys[i])
        np.testing.assert_allclose(together.boxes[i], alone.boxes, atol=1e-3)
        difference = together.images[i].astype(np.int32) - alone.images.astype(np.int32)
        assert np.abs(difference).max() <= 1


def test_seeds_and_splits_show_different_scenes(small):
    other = load_scenes(Scenes(image_size=32, train_size=64, test_size=1, seed=1))
    for batch in (small.test, other.train):
        same = np.all(small.train.images[:64] == batch.images[:64], axis=(1, 2, 3))
        assert not same.any()


def test_every_image_has_objects_and_all_numbers_of_them_occur(small):
    count = small.train.valid.sum(1)
    assert set(count) == {1, 2, 3, 4}


def test_sizes_are_log_uniform_over_a_tenfold_range(small):
    # Later objects find room less often when they are large; the first always finds it.
    first = small.train.boxes[:, 0]
    sides = np.max(first[:, 2:] - first[:, :2], axis=-1) / 32
    assert sides.max() / sides.min() >= 9.5
    assert SMALL.sizes[1] / SMALL.sizes[0] >= 10
    low, high = np.log(SMALL.sizes)
    ranks = np.sort((np.log(sides) - low) / (high - low))
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed with probability 0.001 by chance.
    assert np.abs(ranks - np.linspace(0, 1, len(ranks))).max() < 1.95 / np.sqrt(len(ranks))


def test_boxes_lie_inside_the_image_and_hardly_overlap(small):
    assert small.train.boxes.min() >= 0
    assert small.train.boxes.max() <= 32
    for boxes, valid in zip(small.train.boxes, small.train.valid):
        kept = boxes[valid]
        area = np.prod(kept[:, 2:] - kept[:, :2], axis=-1)
        low = np.maximum(kept[:, None, :2], kept[None, :, :2])
        high = np.minimum(kept[:, None, 2:], kept[None, :, 2:])
        common = np.prod(np.maximum(high - low, 0), axis=-1)
        share = common / np.minimum(area[:, None], area[None])
        assert np.max(share - np.diag(np.diag(share))) <= 0.1 + 1e-4


@pytest.fixture
def masks(monkeypatch):
    """White shapes of all sizes on black, one an image, with their boxes and classes."""
    monkeypatch.setattr(scenes, "_distract", lambda size, key, ground: 0 * ground)
    monkeypatch.setattr(scenes, "_colors", lambda key, count, ground: jnp.full((count, 3), 255.0))
    monkeypatch.setattr(scenes, "_illuminate", lambda key, image: image)
    draw = jax.vmap(functools.partial(scene, Scenes(image_size=64, max_objects=1)))
    batch = jax.jit(draw)(jax.random.split(jax.random.key(0), 400))
    return jax.device_get((batch.images[..., 0] / 255, batch.boxes[:, 0], batch.classes[:, 0]))


def test_boxes_are_tight_around_what_is_drawn_and_classes_are_their_shapes(masks):
    cover, boxes, classes = masks
    assert set(classes) == {0, 1, 2, 3}
    roundness = {name: [] for name in CLASS_NAMES}
    for image, box, class_ in zip(cover, boxes, classes):
        y, x = np.nonzero(image > 0.3)
        found = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        # A pointed corner covers little of its outermost pixel.
        np.testing.assert_allclose(box, found, atol=1.5)
        if max(box[2:] - box[:2]) > 25:
            y, x = np.indices(image.shape)
            area = image.sum()
            y, x = y - (image * y).sum() / area, x - (image * x).sum() / area
            moment = (image * (x**2 + y**2)).sum()
            roundness[CLASS_NAMES[class_]].append(area**2 / (2 * np.pi * moment))
    # Area squared over the polar moment, in closed form; no turning or scaling changes it.
    expected = {"circle": 1.0, "square": 3 / np.pi, "triangle": 0.8270, "cross": 0.8538}
    for name, values in roundness.items():
        np.testing.assert_allclose(values, expected[name], atol=0.012)


def test_color_is_independent_of_the_class(small):
    boxes, classes, image = objects(small.train)
    center = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2).astype(int)
    colors = small.train.images[image, center[:, 1], center[:, 0]].astype(float)
    groups = [colors[classes == class_] for class_ in range(len(CLASS_NAMES))]
    assert min(map(len, groups)) > 200
    for group in groups:
        error = colors.std(0) / np.sqrt(len(group))
        assert np.all(np.abs(group.mean(0) - colors.mean(0)) < 4.5 * error)


def test_size_is_independent_of_the_class(small):
    boxes, classes, _ = objects(small.train)
    sides = np.log(np.max(boxes[:, 2:] - boxes[:, :2], axis=-1))
    for class_ in range(len(CLASS_NAMES)):
        group = sides[classes == class_]
        assert abs(group.mean() - sides.mean()) < 4.5 * sides.std() / np.sqrt(len(group))


@pytest.mark.parametrize(
    ("field", "value"),
    [("image_size", 8), ("train_size", 0), ("test_size", 0), ("max_objects", 0), ("seed", -1)],
)
def test_scenes_rejects_numbers_out_of_bounds(field, value):
    with pytest.raises(ValueError, match=rf"Scenes: {field} is {value}; it must be at least"):
        Scenes(**{field: value})


@pytest.mark.parametrize("sizes", [(0.0, 0.5), (0.5, 0.1), (0.1, 1.5)])
def test_scenes_rejects_sizes_that_are_not_a_range(sizes):
    with pytest.raises(ValueError, match="two shares of the image's side, the smaller first"):
        Scenes(sizes=sizes)
