"""Images are decoded as RGB; hostile and damaged ones are errors of one line."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from fpnlab.data.image_io import MOST_IMAGE_PIXELS, decode_rgb, read_image

TURNED = 6
"""The EXIF orientation of a camera held upright: shown rotated by 90 degrees clockwise."""
PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def encoded(format, image=None, **options):
    buffer = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png_of(width, height, *chunks):
    """A gray PNG whose header gives its size, with other chunks before the pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + png_chunk(b"IEND", b"")


def jpeg_of(width, height):
    """A JPEG whose header gives another size than that of its pixels."""
    content = encoded("JPEG")
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def error_of(call, *args, **kwargs):
    """The message of the ValueError of a call, the only error that it may raise, or None."""
    try:
        call(*args, **kwargs)
    except ValueError as error:
        return str(error)
    return None


@pytest.fixture
def turned():
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0] = 200
    exif = Image.Exif()
    exif[0x0112] = TURNED
    return encoded("PNG", Image.fromarray(pixels), exif=exif), pixels


def test_an_exif_orientation_is_applied_on_request(turned):
    content, pixels = turned
    np.testing.assert_array_equal(decode_rgb(content), pixels)
    np.testing.assert_array_equal(decode_rgb(content, upright=True), np.rot90(pixels, -1))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_predicted_images_have_five_formats(format, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(encoded(format))
    assert read_image(path).shape == (4, 6, 3)


@pytest.mark.parametrize("format", ["BMP", "TIFF", "WEBP", "GIF", "PPM", "EPS", "PDF", "ICO"])
def test_data_sets_have_jpeg_and_png_images_only(format):
    with pytest.raises(ValueError, match=r"does not decode \(it is none of JPEG, PNG, or its"):
        decode_rgb(encoded(format))


@pytest.mark.parametrize("format", ["GIF", "PPM", "EPS", "PDF", "ICO"])
def test_no_other_program_decodes_a_predicted_image(format, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encoded(format))
    with pytest.raises(ValueError, match="is none of JPEG, PNG, BMP, TIFF, WEBP"):
        read_image(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [7_072, 9_600, 13_000, 65_000])
@pytest.mark.parametrize("make", [png_of, jpeg_of])
def test_a_large_image_is_an_error_before_it_is_decoded(make, side, monkeypatch):
    assert side**2 > MOST_IMAGE_PIXELS
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("it is decoded"))
    assert error_of(decode_rgb, make(side, side)) == (
        f"has {side} x {side} = {side**2:,} pixels, and at most 50,000,000 are decoded; "
        "reduce or crop it"
    )


@pytest.mark.parametrize("format", ["BMP", "TIFF", "WEBP"])
def test_a_large_image_to_predict_is_an_error(format, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(encoded(format, Image.new("L", (7_100, 7_100))))
    with pytest.raises(ValueError, match="7100 x 7100 = 50,410,000 pixels, and at most"):
        read_image(path)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_an_image_of_several_frames_is_an_error(format, tmp_path):
    frames = [Image.fromarray(np.full((4, 6, 3), 80 * i, np.uint8)) for i in range(3)]
    path = tmp_path / "image"
    path.write_bytes(encoded(format, frames[0], save_all=True, append_images=frames[1:]))
    with pytest.raises(ValueError, match="has several frames; save one of them"):
        read_image(path)


def test_of_a_jpeg_with_further_pictures_the_first_is_decoded():
    # Such as those of phones, which append a preview or a depth map.
    frames = [Image.fromarray(np.full((8, 8, 3), 100 * i, np.uint8)) for i in (2, 1)]
    content = encoded("MPO", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(decode_rgb(content), 200, atol=2)


BOMB = zlib.compress(bytes(300 * 10**6), 9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"key\0\0" + BOMB),
        png_chunk(b"iTXt", b"key\0\1\0\0\0" + BOMB),
        png_chunk(b"iCCP", b"name\0\0" + BOMB),
        png_chunk(b"eXIf", b"MM\0*" + bytes(10**6)),
    ],
    ids=["zTXt", "iTXt", "iCCP", "eXIf"],
)
def test_a_bomb_beside_the_pixels_takes_no_memory(chunk):
    tracemalloc.start()
    for upright in (False, True):
        error = error_of(decode_rgb, png_of(6, 4, chunk), upright=upright)
        assert error is None or error.startswith("does not decode (")
        assert "\n" not in (error or "")
    assert tracemalloc.get_traced_memory()[1] < 20 * 10**6
    tracemalloc.stop()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_a_truncated_or_damaged_image_is_decoded_or_an_error_of_one_line(format, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = TURNED, "x" * 60_000
    whole = encoded(format, image, **({} if format == "BMP" else {"exif": exif}))
    path = tmp_path / "image"
    random = np.random.default_rng(1)
    variants = [whole[: len(whole) * part // 8] for part in range(8)]
    for _ in range(60):
        changed = bytearray(whole)
        for at in random.integers(0, min(len(whole), 400), 3):
            changed[at] = random.integers(0, 256)
        variants.append(bytes(changed))
    errors = []
    for content in variants:
        path.write_bytes(content)
        errors.append(error_of(read_image, path))
    found = [error for error in errors if error]
    assert len(found) >= 6
    assert [error for error in found if "\n" in error] == []


def test_a_picture_that_is_no_image_is_an_error():
    with pytest.raises(ValueError, match="does not decode"):
        decode_rgb(b"no image")
