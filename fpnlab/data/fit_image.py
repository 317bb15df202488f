"""Resizing of images of any size to one fixed size, with their aspect ratio kept."""

import numpy as np
from jaxtyping import Float, Real, UInt8
from PIL import Image, ImageOps


def letterbox(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "height width 3"], Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """Returns ``image`` scaled to fit into ``size`` and padded, with its scale and its extent.

    The aspect ratio is kept up to the rounding to whole pixels. The picture is in the top-left
    corner; the padding, right and below, is 0. Downscaling averages over the pixels that one new
    pixel covers (a triangle filter), so that fine texture does not alias.

    Args:
      image: Pixels, 0 to 255.
      size: Height and width of the result in pixels.

    Returns:
      The image; the exact scale along y and x, which maps boxes (``letterbox_boxes``); the height
      and width of the picture inside the image in pixels.
    """
    height, width = _picture_size(image.shape[:2], size)
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    canvas = np.zeros((*size, 3), np.uint8)
    canvas[:height, :width] = np.asarray(picture)
    extent = np.array([height, width], np.float32)
    return canvas, letterbox_scale(image.shape[:2], size), extent


def letterbox_scale(old: tuple[int, ...], size: tuple[int, int]) -> Float[np.ndarray, "2"]:
    """Returns the scale of ``letterbox`` along y and x from one size to another.

    Args:
      old: Height and width of the original in pixels.
      size: Height and width of the letterboxed image in pixels.
    """
    extent = np.array(_picture_size(old, size), np.float32)
    return (extent / np.array(old)).astype(np.float32)


def _picture_size(old: tuple[int, ...], size: tuple[int, int]) -> list[int]:
    """Returns height and width of the largest picture of the shape of ``old`` inside ``size``."""
    ratio = min(size[0] / old[0], size[1] / old[1])
    return np.clip(np.rint(np.array(old) * ratio).astype(int), 1, size).tolist()


def letterbox_boxes(
    boxes_xyxy: Real[np.ndarray, "m 4"], scale: Float[np.ndarray, "2"]
) -> Float[np.ndarray, "m 4"]:
    """Returns boxes of the original image in pixels of the letterboxed one.

    Args:
      boxes_xyxy: Boxes in pixels of the original image.
      scale: Scale along y and x, as ``letterbox`` returns it.
    """
    y, x = scale
    return (boxes_xyxy * np.array([x, y, x, y])).astype(np.float32)


def original_boxes(
    boxes_xyxy: Float[np.ndarray, "d 4"], old: tuple[int, int], size: tuple[int, int]
) -> Float[np.ndarray, "d 4"]:
    """Returns boxes of a letterboxed image in pixels of the original, clipped to it.

    Args:
      boxes_xyxy: Boxes in pixels of the letterboxed image.
      old: Height and width of the original in pixels.
      size: Height and width of the letterboxed image in pixels.
    """
    y, x = letterbox_scale(old, size)
    height, width = old
    boxes = boxes_xyxy / np.array([x, y, x, y])
    return np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)


def center_fit(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns the largest center crop of the aspect ratio of ``size``, resized to ``size``.

    Downscaling averages over the pixels that one new pixel covers, so that fine texture does not
    alias.

    Args:
      image: Pixels, 0 to 255.
      size: Height and width of the result in pixels.
    """
    if image.shape[:2] == size:
        return image
    height, width = size
    fitted = ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted)
