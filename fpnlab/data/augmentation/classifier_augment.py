"""Augmentation of labeled images, computed on the device."""

import dataclasses
import functools
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from fpnlab.data.augmentation.color import jitter
from fpnlab.ops.random import named_key
from fpnlab.spec import Bounds, NonNegative, Share, spec
from fpnlab.types import Key, LabeledBatch, PixelValue


@spec
class AugmentImages:
    """Augmentation of labeled images; the defaults are those for CIFAR.

    Padding, random crops of the old size and mirror images: arXiv:1512.03385, section 4.2.
    """

    kind: Literal["classification"] = "classification"
    flip: Annotated[float, Share] = 0.5
    """Probability of a mirror image, left to right."""
    pad: Annotated[int, Bounds(least=0.0, most=8192.0)] = 4
    """Largest shift of an image along each axis, in pixels; pixels shifted in are `fill`."""
    brightness: Annotated[float, Share] = 0.0
    """Largest relative change of all values: 0.2 multiplies them by 0.8 to 1.2."""
    contrast: Annotated[float, Share] = 0.0
    """Largest relative change of the differences between values and the image's mean."""
    saturation: Annotated[float, Share] = 0.0
    """Largest relative change of the differences between values and their pixel's gray."""
    cutout: Annotated[int, Bounds(least=0.0, most=8192.0)] = 0
    """Side in pixels of a square cut out around a random pixel (arXiv:1708.04552); 0: no square."""
    mixup: Annotated[float, NonNegative] = 0.0
    """Alpha of the Beta distribution of mixup's shares (arXiv:1710.09412); 0: no mixup."""
    fill: Annotated[PixelValue, Bounds(least=0.0, most=255.0)] = 127.5
    """Value or color of pixels shifted in or cut out; the classifier's `pixel_mean` makes it 0."""


@functools.partial(jax.jit, static_argnums=0, static_argnames="classes")
def augment_images(
    spec: AugmentImages, keys: Key, batch: LabeledBatch, *, classes: int | None = None
) -> LabeledBatch:
    """Returns ``batch`` with each image augmented at random.

    Colors are changed first, then the image is shifted and flipped, then the square is cut
    out. These depend on the image's key alone, not on the other images or the batch size.

    ``mixup`` is last: each image is mixed with the next image of the batch (the last with the
    first), with a share of its own, and the labels become shares of classes. Batches of a stream
    are in random order, so that the next image is a random one. The successor of the last image
    depends on the batch size, and in a batch of one an image is mixed with itself.

    Args:
      spec: The distribution of augmentations.
      keys: One key per image, ``[b]``.
      batch: Images of any dtype, which the result keeps (uint8 is rounded).
      classes: Number of classes; required for ``mixup`` if labels are numbers.

    Raises:
      ValueError: ``mixup`` of labels that are numbers, without ``classes``.
    """
    views = jax.vmap(functools.partial(_view, spec))(keys, batch.images)
    if not spec.mixup:
        return dataclasses.replace(batch, images=_cast(views, batch.images.dtype))
    share = jax.vmap(functools.partial(_share, spec))(keys)
    labels = _shares_of_classes(jnp.asarray(batch.labels), classes)
    mixed, targets = (_mix(share, x) for x in (views, labels))
    return dataclasses.replace(batch, images=_cast(mixed, batch.images.dtype), labels=targets)


def _view(
    spec: AugmentImages, key: Key, image: Num[Array | np.ndarray, "h w 3"]
) -> Float[Array, "h w 3"]:
    image = jnp.asarray(image, jnp.float32)
    image = jitter(
        key,
        image,
        brightness=spec.brightness,
        contrast=spec.contrast,
        saturation=spec.saturation,
    )
    height, width = image.shape[:2]
    down, right = jax.random.randint(named_key(key, "crop"), (2,), -spec.pad, spec.pad + 1)
    flip = jax.random.bernoulli(named_key(key, "flip"), spec.flip)
    rows, columns = jnp.arange(height), jnp.arange(width)
    y, x = rows - down, jnp.where(flip, width - 1 - columns, columns) - right
    inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
    view = image[jnp.clip(y, 0, height - 1)][:, jnp.clip(x, 0, width - 1)]
    if spec.cutout:
        center = jax.random.randint(named_key(key, "cutout"), (2,), 0, jnp.array([height, width]))
        top, left = center - spec.cutout // 2
        cut = _within(rows, top, spec.cutout)[:, None] & _within(columns, left, spec.cutout)
        inside &= ~cut
    return jnp.where(inside[:, :, None], view, jnp.asarray(spec.fill))


def _within(positions: Int[Array, " n"], first: Int[Array, ""], count: int) -> Bool[Array, " n"]:
    return (positions >= first) & (positions < first + count)


def _share(spec: AugmentImages, key: Key) -> Float[Array, ""]:
    return jax.random.beta(named_key(key, "mixup"), spec.mixup, spec.mixup)


def _mix(share: Float[Array, " b"], x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Returns ``share`` of each example plus the remaining share of the next one."""
    share = share.reshape(-1, *[1] * (x.ndim - 1))
    return share * x + (1 - share) * jnp.roll(x, -1, axis=0)


def _shares_of_classes(labels: Array, classes: int | None) -> Float[Array, "b k"]:
    if labels.ndim == 2:
        return labels.astype(jnp.float32)
    if classes is None:
        raise ValueError("augment_images: mixup needs the number of classes; give classes")
    return jax.nn.one_hot(labels, classes)


def _cast(images: Float[Array, "b h w 3"], dtype: np.dtype) -> Num[Array, "b h w 3"]:
    return (jnp.round(images) if jnp.issubdtype(dtype, jnp.integer) else images).astype(dtype)
