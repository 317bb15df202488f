"""Augmentation of images with boxes, computed on the device."""

import dataclasses
import functools
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from fpnlab.ops.random import named_key
from fpnlab.ops.resize import sample_linear
from fpnlab.spec import Bounds, Share, SpecError, spec
from fpnlab.types import Batch, Key


@spec
class Augment:
    """Augmentation of images with boxes."""

    kind: Literal["detection"] = "detection"
    flip: Annotated[float, Share] = 0.5
    """Probability of a mirror image, left to right."""
    scale: Annotated[tuple[float, float], Bounds(least=0.01, most=100.0)] = (1.0, 1.0)
    """Smallest and largest zoom, log-uniform between them; a picture that is then larger than the
    canvas is cropped at random."""
    brightness: Annotated[float, Share] = 0.0
    """Largest relative change of all values: 0.2 multiplies them by 0.8 to 1.2."""
    contrast: Annotated[float, Share] = 0.0
    """Largest relative change of the differences between values and the picture's mean."""
    keep: Annotated[float, Share] = 0.3
    """Smallest share of its area that a cropped box must keep to remain an object."""

    def __post_init__(self) -> None:
        """Checks the range of zooms."""
        if self.scale[0] > self.scale[1]:
            raise SpecError("Augment", [("scale", f"is {self.scale}; the smaller must be first")])


@functools.partial(jax.jit, static_argnums=0)
def augment(spec: Augment, keys: Key, batch: Batch) -> Batch:
    """Returns ``batch`` with each image augmented at random.

    Images are flipped, zoomed and cropped inside the picture's extent, so that padding stays to
    the right and below, and is never inside the picture. A zoomed picture smaller than the
    canvas is in the top-left corner. Boxes are clipped to the crop; those that keep less than
    ``spec.keep`` of their area become invalid, and invalid boxes are 0.

    Args:
      spec: The distribution of augmentations.
      keys: One key per image, ``[b]``, on which alone its augmentation depends, not on the other
        images or the batch size.
      batch: Images of any dtype, which the result keeps (uint8 is rounded).
    """
    return jax.vmap(functools.partial(_augment_image, spec))(keys, batch)


def _augment_image(spec: Augment, key: Key, example: Batch) -> Batch:
    canvas = jnp.array(example.images.shape[:2], jnp.float32)
    low, high = (jnp.log(jnp.float32(zoom)) for zoom in spec.scale)
    zoom = jnp.exp(jax.random.uniform(named_key(key, "scale"), minval=low, maxval=high))
    # Whole pixels, so that no pixel is part picture, part padding.
    zoomed = jnp.maximum(jnp.round(example.extent * zoom), 1)
    extent = jnp.minimum(zoomed, canvas)
    scale = zoomed / example.extent
    offset = jax.random.uniform(named_key(key, "crop"), (2,)) * (zoomed - extent)
    flip = jax.random.bernoulli(named_key(key, "flip"), spec.flip)

    pixels = _view_pixels(example.images, example.extent, scale, offset, extent, flip)
    boxes, share = _view_boxes(example.boxes, scale, offset, extent, flip)
    valid = example.valid & (share > 0) & (share >= spec.keep)
    rows, columns = (jnp.arange(size) for size in example.images.shape[:2])
    mask = (rows < extent[0])[:, None] & (columns < extent[1])
    pixels = jnp.where(mask[:, :, None], _jitter(spec, key, pixels, mask), 0)
    if jnp.issubdtype(example.images.dtype, jnp.integer):
        pixels = jnp.round(pixels)
    return dataclasses.replace(
        example,
        images=pixels.astype(example.images.dtype),
        boxes=jnp.where(valid[:, None], boxes, 0),
        valid=valid,
        extent=extent,
    )


def _view_pixels(
    image: Num[Array | np.ndarray, "h w 3"],
    picture: Float[Array | np.ndarray, " 2"],
    scale: Float[Array, " 2"],
    offset: Float[Array, " 2"],
    extent: Float[Array, " 2"],
    flip: Bool[Array, ""],
) -> Float[Array, "h w 3"]:
    """Returns the pixels of a view; those beyond ``extent`` are undefined."""
    y, x = (jnp.arange(size) + 0.5 for size in image.shape[:2])
    x = jnp.where(flip, extent[1] - x, x)
    # Clipped to the picture, so that interpolation never mixes in its padding.
    y, x = (
        jnp.clip((to + offset[axis]) / scale[axis], 0.5, picture[axis] - 0.5)
        for axis, to in enumerate((y, x))
    )
    return sample_linear(sample_linear(image, y, axis=0), x, axis=1)


def _view_boxes(
    boxes_xyxy: Float[Array | np.ndarray, "m 4"],
    scale: Float[Array, " 2"],
    offset: Float[Array, " 2"],
    extent: Float[Array, " 2"],
    flip: Bool[Array, ""],
) -> tuple[Float[Array, "m 4"], Float[Array, " m"]]:
    """Returns the boxes clipped to a view, and the share of its area that each keeps."""
    corners = boxes_xyxy.reshape(-1, 2, 2) * scale[::-1] - offset[::-1]
    inside = jnp.clip(corners, 0, extent[::-1])
    whole, kept = (jnp.prod(box[:, 1] - box[:, 0], axis=-1) for box in (corners, inside))
    left, top, right, bottom = inside.reshape(-1, 4).T
    left, right = (
        jnp.where(flip, extent[1] - right, left),
        jnp.where(flip, extent[1] - left, right),
    )
    clipped = jnp.stack([left, top, right, bottom], axis=-1)
    return clipped, jnp.where(whole > 0, kept / jnp.where(whole > 0, whole, 1), 0)


def _jitter(
    spec: Augment, key: Key, image: Float[Array, "h w 3"], mask: Bool[Array, "h w"]
) -> Float[Array, "h w 3"]:
    """Returns ``image`` with its brightness and contrast changed, 0 to 255."""
    brightness, contrast = (
        1 + limit * jax.random.uniform(named_key(key, name), minval=-1.0, maxval=1.0)
        for name, limit in (("brightness", spec.brightness), ("contrast", spec.contrast))
    )
    mean = jnp.mean(image, where=mask[:, :, None])
    return jnp.clip((image * contrast + mean * (1 - contrast)) * brightness, 0, 255)
