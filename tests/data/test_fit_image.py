import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpnlab.data.fit_image import center_fit, letterbox, letterbox_boxes, original_boxes

sides = st.integers(1, 60)


@settings(max_examples=30, deadline=None)
@given(sides, sides, sides, sides)
def test_the_picture_fills_one_side_and_keeps_its_aspect_ratio(h, w, height, width):
    image, scale, extent = letterbox(np.full((h, w, 3), 200, np.uint8), (height, width))
    assert image.shape == (height, width, 3)
    rows, columns = extent.astype(int)
    assert rows == height or columns == width
    ratio = min(height / h, width / w)
    assert np.all(np.abs(extent - np.maximum(ratio * np.array([h, w]), 1)) <= 0.5 + 1e-4)
    np.testing.assert_allclose(scale, extent / [h, w], rtol=1e-6)
    assert np.all(image[:rows, :columns] == 200)
    assert np.all(image[rows:] == 0)
    assert np.all(image[:, columns:] == 0)


@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (10, 20), (24, 32)])
def test_letterboxed_boxes_follow_the_pixels(shape):
    h, w = shape
    box = np.array([[w // 4, h // 5, w // 2, h // 2]], np.float64)
    x1, y1, x2, y2 = box[0].astype(int)
    image = np.zeros((h, w, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    letterboxed, scale, _ = letterbox(image, (24, 32))
    y, x = np.nonzero(letterboxed[..., 0] > 127)
    found = [x.min(), y.min(), x.max() + 1, y.max() + 1]
    np.testing.assert_allclose(letterbox_boxes(box, scale)[0], found, atol=1)


def test_boxes_are_scaled_along_their_own_axis():
    boxes = letterbox_boxes(np.array([[1.0, 10.0, 2.0, 20.0]]), np.array([0.5, 3.0]))
    np.testing.assert_array_equal(boxes, [[3, 5, 6, 10]])


def test_an_image_of_the_right_size_is_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    letterboxed, scale, extent = letterbox(image, (24, 32))
    np.testing.assert_array_equal(letterboxed, image)
    np.testing.assert_array_equal(scale, [1, 1])
    np.testing.assert_array_equal(extent, [24, 32])


def test_downscaling_averages_instead_of_aliasing():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    letterboxed, _, _ = letterbox(stripes, (16, 16))
    assert np.all(np.abs(letterboxed[:, 2:-2].astype(int) - 127) < 20)


@pytest.mark.parametrize("size", [(16, 16), (96, 96)])
def test_resized_values_stay_within_the_range_of_the_original(size):
    """A triangle filter averages; sharper ones ring at edges."""
    image = np.full((48, 48, 3), 100, np.uint8)
    image[:, 24:] = 150
    letterboxed, _, _ = letterbox(image, size)
    assert (letterboxed.min(), letterboxed.max()) == (100, 150)


@settings(max_examples=30, deadline=None)
@given(sides, sides, sides, sides)
def test_original_boxes_inverts_the_letterbox(h, w, height, width):
    boxes = np.array([[0, 0, w, h], [w / 4, h / 5, w / 2, h / 3]])
    _, scale, _ = letterbox(np.zeros((h, w, 3), np.uint8), (height, width))
    there = letterbox_boxes(boxes, scale)
    np.testing.assert_allclose(
        original_boxes(there, (h, w), (height, width)), boxes, rtol=1e-5, atol=1e-4
    )


def test_boxes_beyond_the_picture_are_clipped_to_the_original():
    boxes = original_boxes(np.array([[-4.0, -4.0, 40.0, 40.0]]), (10, 20), (32, 32))
    np.testing.assert_array_equal(boxes, [[0, 0, 20, 10]])


@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (8, 6), (24, 32)])
def test_a_center_fit_keeps_the_middle_and_the_aspect_ratio(shape):
    image = np.full((*shape, 3), 50, np.uint8)
    h, w = shape
    image[h // 2 - 1 : h // 2 + 1, w // 2 - 1 : w // 2 + 1] = 255
    fitted = center_fit(image, (24, 32))
    assert fitted.shape == (24, 32, 3)
    y, x = np.nonzero(fitted[..., 0] > 128)
    assert abs(y.mean() + 0.5 - 12) < 2.5
    assert abs(x.mean() + 0.5 - 16) < 3.5
