"""Images of any size into one fixed size, without distortion."""

import numpy as np
from PIL import Image, ImageOps


def letterbox(
    image: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ``image`` as large as fits into ``size``, how much it was scaled, and its extent.

    The aspect ratio is kept up to the rounding to whole pixels. The picture stands in the
    top-left corner; the padding, right and below, is 0. Shrinking averages over the pixels
    that one new pixel covers (a triangle filter), so fine texture does not alias.

    Args:
      image: ``[h, w, 3]`` uint8.
      size: height and width of the result in pixels.

    Returns:
      The image ``[*size, 3]`` uint8; the exact scale ``[2]`` float32 along y and x, which
      maps boxes (``letterbox_boxes``); the height and width ``[2]`` float32 of the picture.
    """
    height, width = _picture_size(image.shape[:2], size)
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    canvas = np.zeros((*size, 3), np.uint8)
    canvas[:height, :width] = np.asarray(picture)
    extent = np.array([height, width], np.float32)
    return canvas, letterbox_scale(image.shape[:2], size), extent


def letterbox_scale(old: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    """Returns the scale ``[2]`` float32 along y and x of ``letterbox`` from one size to another.

    Args:
      old: Height and width of the original in pixels.
      size: Height and width of the letterboxed image in pixels.
    """
    extent = np.array(_picture_size(old, size), np.float32)
    return (extent / np.array(old)).astype(np.float32)


def _picture_size(old: tuple[int, ...], size: tuple[int, int]) -> list[int]:
    ratio = min(size[0] / old[0], size[1] / old[1])
    return np.clip(np.rint(np.array(old) * ratio).astype(int), 1, size).tolist()


def letterbox_boxes(boxes_xyxy: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns ``[m, 4]`` boxes of the original image in pixels of the letterboxed one."""
    y, x = scale
    return (boxes_xyxy * np.array([x, y, x, y])).astype(np.float32)


def original_boxes(
    boxes_xyxy: np.ndarray, old: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Returns ``[d, 4]`` boxes of a letterboxed image in pixels of the original, clipped to it.

    Args:
      boxes_xyxy: Boxes in pixels of the letterboxed image.
      old: Height and width of the original in pixels.
      size: Height and width of the letterboxed image in pixels.
    """
    y, x = letterbox_scale(old, size)
    height, width = old
    boxes = boxes_xyxy / np.array([x, y, x, y])
    return np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)


def center_fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the largest central part of ``image`` of the shape of ``size``, scaled to it.

    Shrinking averages over the pixels that one new pixel covers, so fine texture does not alias.

    Args:
      image: ``[h, w, 3]`` uint8.
      size: Height and width of the result in pixels.
    """
    if image.shape[:2] == size:
        return image
    height, width = size
    fitted = ImageOps.fit(Image.fromarray(image), (width, height), Image.Resampling.BILINEAR)
    return np.asarray(fitted)
