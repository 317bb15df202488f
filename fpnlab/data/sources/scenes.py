"""Generated scenes: a detection task without a download, whose classes differ only in shape."""

import dataclasses
import functools
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fpnlab.data.dataset import Dataset, too_many_pixels
from fpnlab.ops.random import named_key
from fpnlab.spec import Bounds, NonNegative, SpecError, spec
from fpnlab.types import Batch, Key

CLASS_NAMES = ("circle", "square", "triangle", "cross")

POSITIONS_TRIED = 16
"""Random positions tried for each object."""
MAX_OVERLAP = 0.1
"""Largest common area of two boxes, as a share of the smaller one."""
DISTRACTORS = 3
"""Most blobs, and most lines, in the background."""
WAVES = 12
"""Waves of different lengths in the texture of the background."""
CHUNK = 64
"""Images that one compiled program draws at once."""


@spec
class Scenes:
    """Images of simple shapes on a textured background, over a tenfold range of sizes."""

    kind: Literal["scenes"] = "scenes"
    image_size: Annotated[int, Bounds(least=16.0, most=4096.0)] = 64
    """Height and width of an image in pixels."""
    train_size: Annotated[int, Bounds(least=1.0, most=1e6)] = 4096
    """Number of training images."""
    test_size: Annotated[int, Bounds(least=1.0, most=1e6)] = 256
    """Number of held-out images."""
    max_objects: Annotated[int, Bounds(least=1.0, most=1000.0)] = 4
    """Largest number of objects in an image; the number is uniform from 1 to it."""
    sizes: tuple[float, float] = (0.085, 0.875)
    """Smallest and largest longer side of a box, as shares of the image's side; log-uniform."""
    turn: Annotated[float, Bounds(least=0.0, most=180.0)] = 15.0
    """Largest rotation of a shape in either direction, in degrees; 180 for any angle."""
    seed: Annotated[int, NonNegative] = 0
    """Seed of the whole data set, training and held-out images."""

    def __post_init__(self) -> None:
        """Checks the number of pixels and the range of sizes."""
        size = (self.image_size, self.image_size)
        if problem := too_many_pixels(self.train_size + self.test_size, size):
            raise SpecError("Scenes", [("train_size", f"with test_size, {problem}")])
        if not 0 < self.sizes[0] <= self.sizes[1] <= 1:
            problem = (
                f"is {self.sizes}; it must be two shares of the image's side, the smaller first, "
                "above 0 and at most 1"
            )
            raise SpecError("Scenes", [("sizes", problem)])


def load_scenes(spec: Scenes) -> Dataset:
    """Returns the training and held-out scenes of ``spec`` in host memory."""
    return Dataset(
        name="scenes",
        class_names=CLASS_NAMES,
        train=_split(spec, "train", spec.train_size),
        test=_split(spec, "test", spec.test_size),
    )


def _split(spec: Scenes, name: str, size: int) -> Batch:
    """Returns the first ``size`` scenes of the split ``name``."""
    key = named_key(jax.random.key(spec.seed), name)
    # Always whole chunks, so that an image is computed by the same compiled program, and has the
    # same pixels, whatever the number of images.
    numbers = jnp.arange(-(-size // CHUNK) * CHUNK).reshape(-1, CHUNK)
    chunks = [jax.device_get(_chunk(spec, key, chunk)) for chunk in numbers]
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:size], *chunks)
    return dataclasses.replace(whole, index=np.arange(size, dtype=np.int32))


@functools.partial(jax.jit, static_argnums=0)
def _chunk(spec: Scenes, key: Key, numbers: Int[Array, " b"]) -> Batch:
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
    return jax.vmap(functools.partial(scene, spec))(keys)


def scene(spec: Scenes, key: Key) -> Batch:
    """Returns the scene that ``key`` determines: a batch without its leading axis.

    An object has an independent class, size, angle and color. Its position is the first of some
    random positions at which its box shares at most a tenth of the smaller box's area with each
    earlier one; an object without such a position is left out. Boxes are those of the whole
    shapes, with fractions of a pixel.

    Args:
      spec: The distribution of scenes.
      key: The key of the scene.
    """
    size, count = spec.image_size, spec.max_objects
    classes = jax.random.randint(named_key(key, "class"), (count,), 0, len(CLASS_NAMES))
    turn = math.radians(spec.turn)
    angles = jax.random.uniform(named_key(key, "angle"), (count,), minval=-turn, maxval=turn)
    angles = jnp.where(classes == CLASS_NAMES.index("circle"), 0, angles)
    low, high = jnp.log(jnp.array(spec.sizes) * size)
    sides = jnp.exp(jax.random.uniform(named_key(key, "size"), (count,), minval=low, maxval=high))

    reach = jax.vmap(_reach)(classes, angles)
    radii = sides / jnp.max(reach[:, 1] - reach[:, 0], axis=-1)
    reach = reach * radii[:, None, None]
    boxes, valid = _place(size, key, reach[:, 1] - reach[:, 0])
    origins = boxes[:, :2] - reach[:, 0]

    ground = _ground(size, key)
    image = _distract(size, key, ground)
    cover = jax.vmap(functools.partial(_coverage, size))(classes, origins, radii, angles)
    # Keys are derived from names: a new spelling of "colour" would change all published scenes.
    colors = _colors(named_key(key, "colour"), count, ground)
    image = _paint(image, cover * valid[:, None, None], colors)
    image = _illuminate(key, image)
    return Batch(
        images=jnp.round(jnp.clip(image, 0, 255)).astype(jnp.uint8),
        boxes=jnp.where(valid[:, None], boxes, 0),
        classes=jnp.where(valid, classes, 0),
        valid=valid,
        extent=jnp.full(2, spec.image_size, jnp.float32),
        index=jnp.int32(0),
    )


# Outermost points of each class's shape around its origin, padded by repetition. Those of the
# circle are its box's, because circles are not turned.
_ARM = 0.36
_POINTS = np.array(
    [
        [(1, 0), (0, 1), (-1, 0), (0, -1)] * 2,
        [(1, 1), (-1, 1), (-1, -1), (1, -1)] * 2,
        [(math.sin(turn * math.tau / 3), -math.cos(turn * math.tau / 3)) for turn in range(8)],
        [(x, y) for x in (-1, 1) for y in (-_ARM, _ARM)]
        + [(x, y) for x in (-_ARM, _ARM) for y in (-1, 1)],
    ],
    np.float32,
)


def _turn(points_xy: Float[Array, "*n 2"], angle: Float[Array, ""]) -> Float[Array, "*n 2"]:
    """Returns points rotated around the origin by an angle in radians."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    x, y = points_xy[..., 0], points_xy[..., 1]
    return jnp.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def _reach(class_: Int[Array, ""], angle: Float[Array, ""]) -> Float[Array, "2 2"]:
    """Returns the top-left and bottom-right corner (x, y) of a shape of radius 1."""
    points = _turn(jnp.asarray(_POINTS)[class_], angle)
    return jnp.stack([jnp.min(points, axis=0), jnp.max(points, axis=0)])


def _place(
    size: int, key: Key, box_sizes: Float[Array, "m 2"]
) -> tuple[Float[Array, "m 4"], Bool[Array, " m"]]:
    """Returns the boxes of these sizes (width, height), and which have a position."""
    count = len(box_sizes)
    wanted = jax.random.randint(named_key(key, "number"), (), 1, count + 1)
    corners = jax.random.uniform(named_key(key, "place"), (count, POSITIONS_TRIED, 2))
    boxes, valid = jnp.zeros((count, 4)), jnp.zeros(count, bool)
    for i in range(count):
        corner = corners[i] * (size - box_sizes[i])
        tried = jnp.concatenate([corner, corner + box_sizes[i]], axis=-1)
        free = jnp.all((_overlap(tried, boxes) <= MAX_OVERLAP) | ~valid, axis=1)
        boxes = boxes.at[i].set(tried[jnp.argmax(free)])
        valid = valid.at[i].set(jnp.any(free) & (i < wanted))
    return boxes, valid


def _overlap(a_xyxy: Float[Array, "n 4"], b_xyxy: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Returns the common area as a share of the smaller box's area, which is at least the IoU."""
    a, b = a_xyxy[:, None], b_xyxy[None]
    low, high = jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:])
    common = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
    area = jnp.minimum(*(jnp.prod(box[..., 2:] - box[..., :2], axis=-1) for box in (a, b)))
    return common / jnp.maximum(area, 1e-6)


def _pixel_centers(size: int) -> Float[Array, "h w 2"]:
    """Returns the centers (x, y) of all pixels."""
    line = jnp.arange(size) + 0.5
    return jnp.stack(jnp.meshgrid(line, line), axis=-1)


def _coverage(
    size: int,
    class_: Int[Array, ""],
    origin: Float[Array, " 2"],
    radius: Float[Array, ""],
    angle: Float[Array, ""],
) -> Float[Array, "h w"]:
    """Returns the share of each pixel that a shape covers, from the distance to its edge."""
    points = _turn(_pixel_centers(size) - origin, -angle) / radius
    x, y = points[..., 0], points[..., 1]
    wide, high = jnp.abs(x), jnp.abs(y)
    distances = {
        "circle": jnp.hypot(x, y) - 1,
        "square": jnp.maximum(wide, high) - 1,
        "triangle": jnp.maximum(y, math.sqrt(0.75) * wide - 0.5 * y) - 0.5,
        "cross": jnp.minimum(
            jnp.maximum(wide - 1, high - _ARM), jnp.maximum(wide - _ARM, high - 1)
        ),
    }
    distance = jnp.stack([distances[name] for name in CLASS_NAMES])[class_]
    return jnp.clip(0.5 - distance * radius, 0, 1)


def _ground(size: int, key: Key) -> Float[Array, "h w 3"]:
    """Returns a background: one color, modulated by waves from long to short wavelengths."""
    base = jax.random.uniform(named_key(key, "ground"), (3,), minval=80.0, maxval=175.0)
    angle, pitch, phase = jax.random.uniform(named_key(key, "waves"), (3, WAVES))
    cycles = 0.5 * 40**pitch
    strength = jax.random.normal(named_key(key, "strength"), (WAVES, 3))
    strength *= 6 / cycles[:, None] ** 0.3
    # sin(x + y) = sin x cos y + cos x sin y: one product instead of a sine per pixel and wave.
    line = (jnp.arange(size)[:, None] + 0.5) / size * math.tau * cycles
    across = line * jnp.cos(math.tau * angle) + math.tau * phase
    down = line * jnp.sin(math.tau * angle)
    rows = jnp.concatenate([jnp.cos(down), jnp.sin(down)], axis=1)
    columns = jnp.concatenate([jnp.sin(across), jnp.cos(across)], axis=1)
    columns = columns.T[:, :, None] * jnp.tile(strength, (2, 1))[:, None]
    return base + jnp.tensordot(rows, columns, 1)


def _colors(key: Key, count: int, ground: Float[Array, "h w 3"]) -> Float[Array, "n 3"]:
    """Returns random colors with a distance from the background's mean color."""
    direction = jax.random.normal(named_key(key, "direction"), (count, 3))
    distance = jax.random.uniform(named_key(key, "distance"), (count, 1), minval=90.0, maxval=160.0)
    away = distance * direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
    return jnp.clip(jnp.mean(ground, (0, 1)) + away, 0, 255)


def _paint(
    image: Float[Array, "h w 3"], cover: Float[Array, "n h w"], colors: Float[Array, "n 3"]
) -> Float[Array, "h w 3"]:
    """Returns ``image`` with each color blended over it by its cover, the last one on top."""
    for i in range(len(colors)):
        image += cover[i, :, :, None] * (colors[i] - image)
    return image


def _distract(size: int, key: Key, ground: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
    """Returns ``ground`` with soft blobs and narrow lines, which belong to no class."""
    blobs, lines = named_key(key, "blobs"), named_key(key, "lines")
    poses = jax.random.uniform(named_key(blobs, "pose"), (DISTRACTORS, 4, 1, 1))
    x, y, width, shown = jnp.moveaxis(poses, 1, 0)
    points = _pixel_centers(size) / size
    squared = (points[..., 0] - x) ** 2 + (points[..., 1] - y) ** 2
    soft = 0.5 * jnp.exp(-squared / (0.06 + 0.12 * width) ** 2 / 2) * (shown < 0.5)
    image = _paint(ground, soft, _colors(blobs, DISTRACTORS, ground))

    poses = jax.random.uniform(named_key(lines, "pose"), (DISTRACTORS, 5))
    x, y, angle, length, shown = poses.T
    points = _pixel_centers(size) - size * jnp.stack([x, y], axis=-1)[:, None, None]
    points = jax.vmap(_turn)(points, angle * math.pi)
    half = size * (0.05 + 0.2 * length)[:, None, None]
    beyond = jnp.maximum(jnp.abs(points[..., 0]) - half, 0)
    line = jnp.clip(1.1 - jnp.hypot(beyond, points[..., 1]), 0, 1)
    line *= (shown < 0.5)[:, None, None]
    return _paint(image, line, _colors(lines, DISTRACTORS, ground))


def _illuminate(key: Key, image: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
    """Returns ``image`` with a linear gradient of brightness and with noise."""
    size = len(image)
    angle, fall, level = jax.random.uniform(named_key(key, "light"), (3,))
    along = _turn(_pixel_centers(size) / size - 0.5, angle * math.tau)[..., 0]
    light = (0.8 + 0.3 * level) * (1 + 0.4 * fall * along)
    noise = jax.random.normal(named_key(key, "camera"), (size, size, 1))
    return image * light[:, :, None] + 4 * noise
