import numpy as np
import pytest

from fpnlab.ops import anchors


def center(boxes_xyxy):
    return 0.5 * (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:])


def side(boxes_xyxy):
    return boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]


def test_anchors_of_a_two_by_three_map_by_hand():
    got = anchors.level_anchors((2, 3), 3, scale=2.0, octaves=1, ratios=(1.0,))
    assert got.dtype == np.float32
    # stride 8, side 16; x runs fastest
    expected = [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    np.testing.assert_array_equal(center(got), expected)
    np.testing.assert_array_equal(side(got), np.full((6, 2), 16))


def test_a_ratio_is_height_over_width_and_keeps_the_area():
    got = side(anchors.level_anchors((1, 1), 4, scale=4.0, octaves=2, ratios=(0.25, 1.0, 4.0)))
    np.testing.assert_allclose(got[:, 1] / got[:, 0], [0.25, 1, 4, 0.25, 1, 4], rtol=1e-6)
    areas = 64.0**2 * np.array([1, 1, 1, 2, 2, 2])  # the second octave: side times sqrt 2
    np.testing.assert_allclose(got.prod(1), areas, rtol=1e-6)


def test_the_defaults_are_the_nine_anchors_of_retinanet():
    got = side(anchors.level_anchors((1, 1), 3))
    assert len(got) == 9
    np.testing.assert_allclose(np.sqrt(got.prod(1))[::3], 32 * 2 ** (np.arange(3) / 3), rtol=1e-6)


def test_pyramid_anchors_are_ordered_from_the_finest_level():
    sizes = {5: (1, 2), 3: (4, 5), 4: (2, 3)}
    got = anchors.pyramid_anchors(sizes, octaves=1)
    parts = [anchors.level_anchors(sizes[level], level, octaves=1) for level in (3, 4, 5)]
    np.testing.assert_array_equal(got, np.concatenate(parts))
    assert len(got) == 3 * (20 + 6 + 2)


def test_anchors_are_centered_on_the_image_that_the_map_covers():
    for level, size in {3: (16, 12), 6: (2, 3)}.items():
        got = anchors.level_anchors(size, level)
        height, width = (n * 2**level for n in size)
        np.testing.assert_allclose(center(got).mean(0), [width / 2, height / 2], rtol=1e-6)


@pytest.mark.parametrize(
    "invalid", [{"scale": 0.0}, {"octaves": 0}, {"ratios": ()}, {"ratios": (1.0, -2.0)}]
)
def test_level_anchors_rejects_invalid_shapes(invalid):
    with pytest.raises(ValueError, match="must be positive"):
        anchors.level_anchors((2, 2), 3, **invalid)


def test_pyramid_anchors_rejects_an_empty_pyramid():
    with pytest.raises(ValueError, match="at least one level"):
        anchors.pyramid_anchors({})
