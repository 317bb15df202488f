"""Anchors: reference boxes of fixed shapes, centered at every cell of every feature map.

They depend on shapes only, so they are NumPy arrays: constants inside a jitted function.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def level_anchors(
    map_size: tuple[int, int],
    level: int,
    *,
    scale: float = 4.0,
    octaves: int = 3,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> Float[np.ndarray, "a 4"]:
    """Returns the anchors of one feature map, ``xyxy`` in pixels of the image, in float32.

    See "Focal Loss for Dense Object Detection", Lin et al. 2017, arXiv:1708.02002, sec. 4; its
    values are the defaults (sides of 32 to 512 pixels on levels 3 to 7). Cell ``(i, j)`` is
    centered at ``((j + 0.5) * stride, (i + 0.5) * stride)``, where the stride is ``2**level``.
    Anchors are ordered by row, column, octave, ratio; they are not clipped to the image.

    Args:
      map_size: Height and width of the map, in cells.
      level: Level of the map.
      scale: Side of the first octave's square anchor, in strides.
      octaves: Sizes per level; the i-th is ``2**(i / octaves)`` times the first.
      ratios: Height over width of each shape; all shapes of one octave have the same area.

    Raises:
      ValueError: ``scale`` or a ratio is not positive, or there is no octave or no ratio.
    """
    if scale <= 0 or octaves < 1 or not ratios or min(ratios) <= 0:
        raise ValueError(
            f"level_anchors: scale {scale}, octaves {octaves}, ratios {tuple(ratios)} make no "
            "anchors; scale and ratios must be positive, octaves and the number of ratios >= 1"
        )
    stride = 2.0**level
    sides = [scale * stride * 2 ** (i / octaves) for i in range(octaves)]
    shapes = [(side / r**0.5, side * r**0.5) for side, r in itertools.product(sides, ratios)]
    half_wh = 0.5 * np.array(shapes)

    y, x = ((np.arange(n) + 0.5) * stride for n in map_size)
    center_xy = np.stack(np.meshgrid(x, y), -1)[:, :, None]
    corners = np.concatenate([center_xy - half_wh, center_xy + half_wh], -1)
    return corners.reshape(-1, 4).astype(np.float32)


def pyramid_anchors(
    map_sizes: dict[int, tuple[int, int]],
    *,
    scale: float = 4.0,
    octaves: int = 3,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> Float[np.ndarray, "a 4"]:
    """Returns the anchors of all levels, from the finest level up; see ``level_anchors``.

    Args:
      map_sizes: Height and width of each level's map, in cells.
      scale: Side of the first octave's square anchor, in strides of its level.
      octaves: Sizes per level.
      ratios: Height over width of each shape.

    Raises:
      ValueError: There is no level, or the shapes are invalid (see ``level_anchors``).
    """
    if not map_sizes:
        raise ValueError("pyramid_anchors: map_sizes is empty; give at least one level's size")
    levels = [
        level_anchors(map_sizes[level], level, scale=scale, octaves=octaves, ratios=ratios)
        for level in sorted(map_sizes)
    ]
    return np.concatenate(levels)
