"""Decoding of image files."""

import os

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps


def decode_rgb(
    path: str | os.PathLike[str], *, upright: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the pixels of an image file of any color mode as RGB, 0 to 255.

    The alpha channel is dropped, and 16 bits are reduced to the upper 8.

    Args:
      path: The file.
      upright: Whether to apply the EXIF orientation; otherwise pixels are returned as stored.

    Raises:
      FileNotFoundError: The file does not exist.
      ValueError: The file is not an image, or it is truncated.
    """
    try:
        with Image.open(path) as image:
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
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).replace(os.fspath(path), "the file")
        raise ValueError(f"does not decode ({reason})") from error
