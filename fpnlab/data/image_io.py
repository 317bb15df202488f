"""Image files to arrays."""

import os

import numpy as np
from PIL import Image, ImageOps


def decode_rgb(path: str | os.PathLike[str], *, upright: bool = False) -> np.ndarray:
    """Returns the image in a file as ``[h, w, 3]`` uint8, whatever its color mode.

    Transparency is dropped, and 16 bits are reduced to the upper 8.

    Args:
      path: The file.
      upright: Whether to apply the EXIF orientation; else pixels come as stored.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a whole image.
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
            # Straight to RGB, Pillow warns about palettes with transparent entries.
            opaque = image.convert("RGBA") if image.mode == "P" else image
            return np.array(opaque.convert("RGB"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).replace(os.fspath(path), "the file")
        raise ValueError(f"does not decode ({reason})") from error
