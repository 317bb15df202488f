"""Decoding of image files."""

import io
import os

import numpy as np
from jaxtyping import UInt8
from PIL import (
    BmpImagePlugin,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from fpnlab.records.regular_files import read_regular

MOST_IMAGE_PIXELS = 50 * 10**6
"""Largest number of pixels of an image file that is decoded."""
MOST_IMAGE_BYTES = 8 * MOST_IMAGE_PIXELS
"""Largest image file in bytes: four channels of 16 bits without compression."""
DATA_FORMATS: tuple[type[ImageFile], ...] = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
)
"""Formats of the images of data sets."""
PREDICTED_FORMATS = (
    *DATA_FORMATS,
    BmpImagePlugin.BmpImageFile,
    TiffImagePlugin.TiffImageFile,
    WebPImagePlugin.WebPImageFile,
)
"""Formats of the images that a trained run predicts."""


def decode_rgb(
    content: bytes,
    *,
    formats: tuple[type[ImageFile], ...] = DATA_FORMATS,
    upright: bool = False,
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the pixels of an image file of any color mode as RGB, 0 to 255.

    The alpha channel is dropped, and 16 bits are reduced to the upper 8.

    Args:
      content: The bytes of the file.
      formats: The formats that are decoded.
      upright: Whether to apply the EXIF orientation; otherwise pixels are returned as stored.

    Raises:
      ValueError: The file is not an image of the formats, has more than `MOST_IMAGE_PIXELS` or
        several frames, or is damaged.
    """
    try:
        with _opened(content, formats) as image:
            _check_size(image)
            image.load()
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):
                # Pillow would clip 16-bit gray at 255.
                gray = np.clip(np.asarray(image) // 256, 0, 255).astype(np.uint8)
                return np.repeat(gray[:, :, None], 3, axis=2)
            # Pillow warns when it converts a palette with transparent entries to RGB directly.
            opaque = image.convert("RGBA") if image.mode == "P" else image
            return np.array(opaque.convert("RGB"))
    except UnsuitableImageError:
        raise
    except Exception as error:  # A damaged file raises errors of many types.
        raise ValueError(f"does not decode ({error})") from error


def read_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the pixels of an image file to predict, with its EXIF orientation applied.

    Args:
      path: The file.

    Raises:
      FileNotFoundError: The file does not exist.
      OSError: It cannot be read.
      ValueError: It is not a regular file, or as in `decode_rgb`; without its name.
    """
    content = read_regular(path, MOST_IMAGE_BYTES)
    return decode_rgb(content, formats=PREDICTED_FORMATS, upright=True)


class UnsuitableImageError(ValueError):
    """An image that is not decoded, although it is not damaged."""


def _opened(content: bytes, formats: tuple[type[ImageFile], ...]) -> ImageFile:
    """Returns an image whose header is read.

    ``PIL.Image.open`` warns of large images, and its error for larger ones lacks their size.
    """
    for format in formats:
        try:
            return format(io.BytesIO(content))
        except SyntaxError:  # It is of another format.
            continue
    names = ", ".join(format.format or "" for format in formats)
    raise UnsuitableImageError(f"does not decode (it is none of {names}, or its header is damaged)")


def _check_size(image: ImageFile) -> None:
    width, height = image.size
    if width * height > MOST_IMAGE_PIXELS:
        raise UnsuitableImageError(
            f"has {width} x {height} = {width * height:,} pixels, and at most "
            f"{MOST_IMAGE_PIXELS:,} are decoded; reduce or crop it"
        )
    if getattr(image, "is_animated", False):
        raise UnsuitableImageError("has several frames; save one of them as an image of its own")
