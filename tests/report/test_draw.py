"""Boxes and labels drawn on images."""

import numpy as np
import pytest
from PIL import ImageColor

from fpnlab.report.draw import GAP, PALETTE, draw_boxes

GRAY = np.full((2, 40, 60, 3), 128, np.uint8)
BOX = np.array([[[10.0, 20.0, 30.0, 35.0]]] * 2, np.float32)
CLASS = np.array([[1], [0]])
VALID = np.array([[True], [False]])
NAMES = ("cat", "dog")


def pixels(picture):
    return np.asarray(picture).astype(int)


def where(picture, color):
    """Rows and columns of the pixels that have the color."""
    return np.nonzero((pixels(picture) == ImageColor.getrgb(color)).all(axis=-1))


def test_boxes_have_their_position_and_the_color_of_their_class():
    picture = draw_boxes(GRAY[:1], BOX[:1], CLASS[:1], VALID[:1], NAMES, scale=4)
    assert picture.size == (240, 160)
    rows, columns = where(picture, PALETTE[1])
    assert (columns.min(), rows.max()) == (40, 140)
    assert (columns.max(), np.median(rows[columns == 120])) == (120, 110)
    assert len(where(picture, PALETTE[0])[0]) == 0


def test_invalid_boxes_are_not_drawn():
    picture = draw_boxes(GRAY[1:], BOX[1:], CLASS[1:], VALID[1:], NAMES, scale=4)
    np.testing.assert_array_equal(pixels(picture), 128)


def test_small_images_are_enlarged_by_repeating_pixels():
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 60, 3), dtype=np.uint8)
    picture = draw_boxes(images, BOX[1:], CLASS[1:], VALID[1:], NAMES)
    expected = images[0].repeat(6, axis=0).repeat(6, axis=1)
    np.testing.assert_array_equal(pixels(picture), expected)


def test_ground_truth_is_white_and_below_the_predictions():
    truth = (BOX[:1] + 3, VALID[:1])
    picture = draw_boxes(GRAY[:1], BOX[:1], CLASS[:1], VALID[:1], NAMES, truth=truth, scale=4)
    rows, columns = where(picture, "#ffffff")
    assert (rows.max(), columns.max()) == (38 * 4, 33 * 4)
    same = draw_boxes(
        GRAY[:1], BOX[:1], CLASS[:1], VALID[:1], NAMES, truth=(BOX[:1], VALID[:1]), scale=4
    )
    assert len(where(same, "#ffffff")[0]) == 0


def test_a_score_widens_the_label():
    arguments = (GRAY[:1], BOX[:1], CLASS[:1], VALID[:1], NAMES)
    plain = where(draw_boxes(*arguments, scale=4), PALETTE[1])
    scored = where(draw_boxes(*arguments, scores=np.array([[0.5]]), scale=4), PALETTE[1])
    above_box = [np.ptp(columns[rows < 76]) for rows, columns in (plain, scored)]
    assert above_box[1] > above_box[0] + 10


def test_of_two_equal_boxes_both_labels_show_and_the_better_color():
    """The labels of boxes in one place are below each other, none hidden by another."""
    one = draw_boxes(GRAY[:1], BOX[:1], CLASS[:1], VALID[:1], NAMES, scale=4)
    boxes, classes = BOX[:1].repeat(2, axis=1), np.array([[1, 0]])
    both = draw_boxes(GRAY[:1], boxes, classes, np.ones((1, 2), bool), NAMES, scale=4)
    label, below = slice(76), slice(100, None)
    for part in (label, below):
        found, expected = (pixels(picture)[part] for picture in (both, one))
        np.testing.assert_array_equal(found, expected)
    rows, _ = where(both, PALETTE[0])
    assert len(rows) > 200
    assert 76 < rows.min() < rows.max() < 100


def test_images_are_arranged_in_a_grid():
    images = GRAY[:1].repeat(3, axis=0)
    rest = [part[:1].repeat(3, axis=0) for part in (BOX, CLASS, VALID)]
    picture = draw_boxes(images, *rest, NAMES, scale=2, columns=2)
    assert picture.size == (2 * 120 + GAP, 2 * 80 + GAP)
    np.testing.assert_array_equal(pixels(picture)[-80:, -120:], 255)


def test_degenerate_boxes_and_unknown_classes_can_be_drawn():
    boxes = np.array(
        [[[30.0, 30.0, 10.0, 10.0], [-50.0, -9.0, 900.0, 2.0], [59.0, 39.0, 59.0, 39.0]]]
    )
    classes, valid = np.array([[7, -1, 1]]), np.ones((1, 3), bool)
    picture = draw_boxes(GRAY[:1], boxes, classes, valid, NAMES, truth=(boxes, valid))
    assert picture.size == (360, 240)


@pytest.mark.parametrize("shape", [(40, 60, 3), (2, 40, 60, 1), (0, 40, 60, 3)])
def test_draw_boxes_rejects_arrays_that_are_not_color_images(shape):
    with pytest.raises(ValueError, match=r"must be \[n, h, w, 3\]"):
        draw_boxes(np.zeros(shape, np.uint8), BOX, CLASS, VALID, NAMES)
