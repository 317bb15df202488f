import numpy as np
import pytest
from PIL import Image

from fpnlab.data.image_io import decode_rgb

TURNED = 6
"""The EXIF orientation of a camera held upright: shown rotated by 90 degrees clockwise."""


@pytest.fixture
def turned(tmp_path):
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0] = 200
    exif = Image.Exif()
    exif[0x0112] = TURNED
    path = tmp_path / "turned.png"
    Image.fromarray(pixels).save(path, exif=exif)
    return path, pixels


def test_an_exif_orientation_is_applied_on_request(turned):
    path, pixels = turned
    np.testing.assert_array_equal(decode_rgb(path.read_bytes()), pixels)
    np.testing.assert_array_equal(decode_rgb(path.read_bytes(), upright=True), np.rot90(pixels, -1))


def test_decoding_a_file_that_is_not_an_image_is_an_error(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("no image")
    with pytest.raises(ValueError, match="does not decode"):
        decode_rgb(path.read_bytes())
