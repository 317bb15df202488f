"""Any image into one fixed size, without distortion."""

import numpy as np
from PIL import Image


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
    old = np.array(image.shape[:2])
    ratio = min(size[0] / old[0], size[1] / old[1])
    height, width = np.clip(np.rint(old * ratio).astype(int), 1, size).tolist()
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    canvas = np.zeros((*size, 3), np.uint8)
    canvas[:height, :width] = np.asarray(picture)
    extent = np.array([height, width], np.float32)
    return canvas, (extent / old).astype(np.float32), extent


def letterbox_boxes(boxes_xyxy: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns ``[m, 4]`` boxes of the original image in pixels of the letterboxed one."""
    y, x = scale
    return (boxes_xyxy * np.array([x, y, x, y])).astype(np.float32)
