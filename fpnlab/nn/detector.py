"""One-stage detector: backbone, neck and head, and the decoding of detections."""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from fpnlab.nn.backbone import (
    Backbone,
    BackboneParams,
    BackboneState,
    capture_backbone,
    init_backbone,
)
from fpnlab.nn.convnext import ConvNeXt
from fpnlab.nn.fpn import Fpn, FpnParams, FpnState, capture_fpn, init_fpn
from fpnlab.nn.norm_specs import Norm
from fpnlab.nn.pixels import standardize_pixels
from fpnlab.nn.pretrained import Pretrained
from fpnlab.nn.retina_head import (
    HeadOutput,
    HeadParams,
    HeadState,
    RetinaHead,
    capture_head,
    init_head,
)
from fpnlab.ops import boxes as box_ops
from fpnlab.ops.anchors import pyramid_anchors
from fpnlab.ops.random import named_key
from fpnlab.ops.suppression import nms
from fpnlab.spec import Bounds, Count, Positive, Share, SpecError, spec
from fpnlab.types import Detections, Intermediates, Key, Mode, PixelValue, picture_mask, tree


@spec
class Anchors:
    """Anchor boxes at every cell of every level (arXiv:1708.02002, section 4)."""

    scale: Annotated[float, Positive] = 4.0
    """Side of the smallest square anchor of a level, in strides of the level."""
    octaves: Annotated[int, Bounds(least=1.0, most=100.0)] = 3
    """Sizes per level: scale * 2**(i / octaves)."""
    ratios: Annotated[tuple[float, ...], Positive] = (0.5, 1.0, 2.0)
    """Ratios of height to width, at equal area."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.ratios) <= 100:
            wrong = f"has {len(self.ratios)} numbers; it must have 1 to 100"
            raise SpecError("Anchors", [("ratios", wrong)])

    @property
    def per_cell(self) -> int:
        """Number of anchors at each cell."""
        return self.octaves * len(self.ratios)


@spec
class Postprocess:
    """Selection of detections from the outputs of the head."""

    score_threshold: Annotated[float, Share] = 0.05
    """Lowest score of a detection."""
    candidates: Annotated[int, Bounds(least=1.0, most=1e5)] = 256
    """Best-scored (anchor, class) pairs per image that enter non-maximum suppression."""
    nms_iou: Annotated[float, Share] = 0.5
    """IoU with a better box of the same class above which a box is dropped."""
    max_detections: Annotated[int, Bounds(least=1.0, most=1e5)] = 100
    """Detections kept per image."""


@spec
class Detector:
    """A RetinaNet: backbone, feature pyramid and shared dense head (arXiv:1708.02002)."""

    kind: Literal["detector"] = "detector"
    classes: Annotated[int, Count]
    """Number of classes; equal to that of the data."""
    backbone: Backbone
    """Backbone: images to feature maps."""
    neck: Fpn = Fpn()
    """Neck: feature maps to pyramid maps."""
    head: RetinaHead = RetinaHead()
    """Head: pyramid maps to logits and deltas."""
    anchors: Anchors = Anchors()
    """Anchor boxes."""
    postprocess: Postprocess = Postprocess()
    """Selection of detections."""
    mask_padding: bool = False
    """If true, the padding of letterboxed pictures does not enter any statistics."""
    pixel_mean: PixelValue = 127.5
    """Subtracted from the images: one value, or those of red, green and blue."""
    pixel_deviation: Annotated[PixelValue, Positive] = 64.0
    """Divisor of the images after the subtraction: one value, or those of red, green and blue."""
    weights: Pretrained | None = None
    """File of the initial weights of the backbone; none: random ones."""

    def __post_init__(self) -> None:
        for name, own in (("anchors_per_cell", self.anchors.per_cell), ("classes", self.classes)):
            given = getattr(self.head, name)
            if given is not None and given != own:
                raise ValueError(
                    f"head.{name} is {given}, but the detector has {own}; leave it out"
                )

    @property
    def norm_positions(self) -> dict[str, Norm]:
        """The norm of each position.

        Those of the backbone, ``lateral`` and ``output`` of the pyramid, and ``head`` where its
        towers have convolutions.
        """
        neck = self.neck
        found = self.backbone.norm_positions
        found["lateral"] = neck.lateral_norm or neck.norm
        found["output"] = neck.output_norm or neck.norm
        if self.head.depth:
            found["head"] = self.head.norm
        return found

    @property
    def complete_head(self) -> RetinaHead:
        """The head with the detector's anchors and classes."""
        return dataclasses.replace(
            self.head, anchors_per_cell=self.anchors.per_cell, classes=self.classes
        )


@tree
class DetectorParams:
    """Parameters of backbone, neck and head."""

    backbone: BackboneParams
    neck: FpnParams
    head: HeadParams


@tree
class DetectorState:
    """Running statistics of backbone, neck and head."""

    backbone: BackboneState
    neck: FpnState
    head: HeadState


def init_detector(key: Key, detector: Detector) -> tuple[DetectorParams, DetectorState]:
    """Returns the initial parameters and state of a detector.

    Raises:
      ValueError: The neck needs levels that the backbone does not have, or the groups of a norm do
        not divide its channels.
    """
    backbone, backbone_state = init_backbone(
        named_key(key, "backbone"), detector.backbone, detector.neck.levels
    )
    neck, neck_state = init_fpn(named_key(key, "neck"), detector.neck, detector.backbone.channels)
    head, head_state = init_head(
        named_key(key, "head"),
        detector.complete_head,
        channels=detector.neck.channels,
        levels=len(detector.neck.levels),
    )
    return (
        DetectorParams(backbone=backbone, neck=neck, head=head),
        DetectorState(backbone=backbone_state, neck=neck_state, head=head_state),
    )


def apply_detector(
    detector: Detector,
    params: DetectorParams,
    state: DetectorState,
    images: Num[Array, "b h w 3"],
    mode: Mode,
    *,
    extent: Float[Array | np.ndarray, "b 2"] | None = None,
    key: Key | None = None,
) -> tuple[HeadOutput, DetectorState]:
    """Returns logits and deltas of every anchor, and the new running statistics.

    Args:
      detector: The model.
      params: Its parameters, float32.
      state: Its running statistics, float32.
      images: Pixels from 0 to 255; the dtype of floats is that of the computation, that of integers
        is float32.
      mode: Source and update of statistics, and whether stochastic layers are active.
      extent: Height and width of the pictures inside the images; needed for ``mask_padding``.
      key: Draws the branches to drop; needed for stochastic depth.

    Raises:
      TypeError: Images of booleans or complex numbers.
      ValueError: ``mask_padding`` without an ``extent``, or the images are smaller than one cell
        of the coarsest level.
    """
    output, state, _ = capture_detector(
        detector, params, state, images, mode, extent=extent, key=key
    )
    return output, state


def capture_detector(
    detector: Detector,
    params: DetectorParams,
    state: DetectorState,
    images: Num[Array, "b h w 3"],
    mode: Mode,
    *,
    extent: Float[Array | np.ndarray, "b 2"] | None = None,
    key: Key | None = None,
) -> tuple[HeadOutput, DetectorState, Intermediates]:
    """Returns the outputs of ``apply_detector``, and those of all layers by name."""
    _, height, width, _ = images.shape
    _check_image(detector, (height, width))
    x = standardize_pixels(images, detector.pixel_mean, detector.pixel_deviation)
    mask = None
    if detector.mask_padding:
        if extent is None:
            raise ValueError("detector: mask_padding needs the extent of the pictures; give it")
        mask = picture_mask(extent, height, width)
    padded, padded_mask = _whole_cells(detector.backbone, x, mask)
    features, backbone, of_backbone = capture_backbone(
        detector.backbone, params.backbone, state.backbone, padded, mode, mask=padded_mask, key=key
    )
    if padded is not x:
        sizes = level_sizes(features, height, width)
        features = {k: y[:, : sizes[k][0], : sizes[k][1]] for k, y in features.items()}
    pyramid, neck, of_neck = capture_fpn(
        detector.neck, params.neck, state.neck, features, mode, mask=mask
    )
    output, head, of_head = capture_head(
        detector.head, params.head, state.head, pyramid, mode, mask=mask
    )
    parts = {"backbone": of_backbone, "neck": of_neck, "head": of_head}
    outputs = collections.OrderedDict(
        (f"{part} {name}", y) for part, found in parts.items() for name, y in found.items()
    )
    return output, DetectorState(backbone=backbone, neck=neck, head=head), outputs


def detector_anchors(detector: Detector, height: int, width: int) -> np.ndarray:
    """Returns the anchors ``[a, 4]`` of images of this size, ``xyxy`` in pixels.

    Raises:
      ValueError: The images are smaller than one cell of the coarsest level.
    """
    _check_image(detector, (height, width))
    sizes = level_sizes(detector.neck.levels, height, width)
    a = detector.anchors
    return pyramid_anchors(sizes, scale=a.scale, octaves=a.octaves, ratios=a.ratios)


def detect(
    detector: Detector,
    output: HeadOutput,
    anchors: Float[Array | np.ndarray, "a 4"],
    extent: Float[Array | np.ndarray, "b 2"],
) -> Detections:
    """Returns the detections of each image, best first.

    Boxes are clipped to the picture's ``extent`` (height, width). Candidates are (anchor, class)
    pairs, so that one anchor may give detections of several classes.
    """
    post = detector.postprocess
    anchors = jnp.asarray(anchors)

    def one(
        logits: Float[Array, "a k"],
        deltas: Float[Array, "a 4"],
        extent: Float[Array | np.ndarray, " 2"],
    ) -> Detections:
        pairs = logits.reshape(-1)
        best, index = jax.lax.top_k(pairs, min(post.candidates, pairs.size))
        anchor, cls = index // detector.classes, index % detector.classes
        boxes = box_ops.clip(box_ops.decode(deltas[anchor], anchors[anchor]), extent)
        return nms(
            boxes,
            jax.nn.sigmoid(best),
            cls,
            iou_threshold=post.nms_iou,
            max_detections=post.max_detections,
            score_threshold=post.score_threshold,
            pre_nms=post.candidates,
        )

    return jax.vmap(one)(output.logits, output.deltas, extent)


def level_sizes(levels: Iterable[int], height: int, width: int) -> dict[int, tuple[int, int]]:
    """Returns height and width in cells of the maps of an image, by level."""
    return {level: (-(-height // 2**level), -(-width // 2**level)) for level in levels}


def _whole_cells(
    backbone: Backbone, x: Float[Array, "b h w 3"], mask: Bool[Array, "b h w"] | None
) -> tuple[Float[Array, "b _ _ 3"], Bool[Array, "b _ _"] | None]:
    """Returns images and mask padded below and on the right to whole cells of all levels.

    Only for a `ConvNeXt`, whose patches would leave out the pixels of a broken cell.
    """
    cell = 2 ** max(backbone.channels)
    below, right = -x.shape[1] % cell, -x.shape[2] % cell
    if not isinstance(backbone, ConvNeXt) or not (below or right):
        return x, mask
    pads = ((0, 0), (0, below), (0, right))
    return jnp.pad(x, (*pads, (0, 0))), None if mask is None else jnp.pad(mask, pads)


def _check_image(detector: Detector, size: tuple[int, int]) -> None:
    top = detector.neck.max_level
    if min(size) < 2**top:
        fits = min(size).bit_length() - 1
        raise ValueError(
            f"detector: images of {size[0]}x{size[1]} pixels leave pyramid level {top} empty (its "
            f"stride is {2**top}); use neck.max_level <= {fits} or {2**top} pixels or more a side"
        )
