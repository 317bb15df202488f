"""Classifier: a backbone, global average pooling, an optional norm, and one dense layer."""

import collections
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from fpnlab.nn.backbone import (
    Backbone,
    BackboneParams,
    BackboneState,
    capture_backbone,
    init_backbone,
)
from fpnlab.nn.block import Gate
from fpnlab.nn.norm_layer import NormParams, NormState, apply_norm, init_norm
from fpnlab.nn.norm_specs import Norm
from fpnlab.nn.pixels import standardize_pixels
from fpnlab.nn.pretrained import Pretrained
from fpnlab.ops.pooling import global_average_pool
from fpnlab.ops.random import named_key
from fpnlab.spec import Count, Fraction, Positive, spec
from fpnlab.types import Intermediates, Key, Mode, PixelValue, tree


@spec
class Classifier:
    """A residual network with global average pooling and a dense layer (arXiv:1512.03385)."""

    kind: Literal["classifier"] = "classifier"
    classes: Annotated[int, Count]
    """Number of classes; equal to that of the data."""
    backbone: Backbone
    """Backbone; the map of its last level is classified."""
    pooled_norm: Norm | None = None
    """Norm of the pooled features (ConvNeXt, arXiv:2201.03545); none: no norm."""
    dropout: Annotated[float, Fraction] = 0.0
    """Probability that a pooled feature is set to 0 in training (arXiv:1207.0580)."""
    pixel_mean: PixelValue = 127.5
    """Subtracted from the images: one value, or those of red, green and blue."""
    pixel_deviation: Annotated[PixelValue, Positive] = 64.0
    """Divisor of the images after the subtraction: one value, or those of red, green and blue."""
    weights: Pretrained | None = None
    """File of the initial weights; none: random ones."""

    @property
    def norm_positions(self) -> dict[str, Norm]:
        """The norm of each position: those of the backbone, and ``pooled`` if there is one."""
        found = self.backbone.norm_positions
        return found if self.pooled_norm is None else found | {"pooled": self.pooled_norm}


@tree
class Dense:
    """A matrix and a bias."""

    kernel: Float[Array, "c k"]
    bias: Float[Array, " k"]


@tree
class ClassifierParams:
    """The parameters of the backbone, of the dense layer, and of the norm before it."""

    backbone: BackboneParams
    dense: Dense
    pooled_norm: NormParams | None = None


@tree
class ClassifierState:
    """The running statistics of the backbone, and of the norm of the pooled features."""

    backbone: BackboneState
    pooled_norm: NormState | None = None


def init_classifier(key: Key, classifier: Classifier) -> tuple[ClassifierParams, ClassifierState]:
    """Returns the initial parameters and state of a classifier.

    The dense kernel is drawn from a normal distribution of variance 1 / fan-in.

    Raises:
      ValueError: The groups of a norm do not divide its channels.
    """
    backbone, state = init_backbone(named_key(key, "backbone"), classifier.backbone)
    norm = norm_state = None
    if classifier.pooled_norm is not None:
        norm, norm_state = init_norm(classifier.pooled_norm, _features(classifier))
    return (
        ClassifierParams(backbone=backbone, dense=init_dense(key, classifier), pooled_norm=norm),
        ClassifierState(backbone=state, pooled_norm=norm_state),
    )


def init_dense(key: Key, classifier: Classifier) -> Dense:
    """Returns the dense layer that ``init_classifier`` draws, without the rest of the network."""
    features = _features(classifier)
    draw = jax.random.normal(named_key(key, "dense"), (features, classifier.classes))
    return Dense(kernel=draw / math.sqrt(features), bias=jnp.zeros(classifier.classes))


def _features(classifier: Classifier) -> int:
    return list(classifier.backbone.channels.values())[-1]


def apply_classifier(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    images: Num[Array, "b h w 3"],
    mode: Mode,
    *,
    key: Key | None = None,
    gates: Gate | None = None,
) -> tuple[Float[Array, "b k"], ClassifierState]:
    """Returns the logits of every class, float32, and the new running statistics.

    Args:
      classifier: The model.
      params: Its parameters, float32.
      state: Its running statistics, float32.
      images: Pixels from 0 to 255; the dtype of floats is that of the backbone's computation, that
        of integers is float32. Pooling and the dense layer compute in float32.
      mode: Source and update of statistics, and whether features are dropped.
      key: Draws the features and branches to drop; needed where ``dropout`` or the backbone's
        ``drop_path`` is above 0 and the mode stochastic.
      gates: Factors of the branches and shortcuts of the backbone's blocks, see
        ``apply_backbone``.

    Raises:
      TypeError: Images of booleans or complex numbers.
      ValueError: Features or branches are dropped and ``key`` is None.
    """
    logits, state, _ = capture_classifier(
        classifier, params, state, images, mode, key=key, gates=gates
    )
    return logits, state


def capture_classifier(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    images: Num[Array, "b h w 3"],
    mode: Mode,
    *,
    key: Key | None = None,
    gates: Gate | None = None,
) -> tuple[Float[Array, "b k"], ClassifierState, Intermediates]:
    """Returns the outputs of ``apply_classifier``, and those of all layers by name."""
    x = standardize_pixels(images, classifier.pixel_mean, classifier.pixel_deviation)
    features, backbone, of_backbone = capture_backbone(
        classifier.backbone, params.backbone, state.backbone, x, mode, key=key, gates=gates
    )
    logits, norm_state = apply_head(
        classifier, params, state, features[max(features)], mode, key=key
    )
    outputs = collections.OrderedDict((f"backbone {k}", y) for k, y in of_backbone.items())
    outputs["dense"] = logits
    return logits, ClassifierState(backbone=backbone, pooled_norm=norm_state), outputs


def apply_head(
    classifier: Classifier,
    params: ClassifierParams,
    state: ClassifierState,
    x: Float[Array, "b h w c"],
    mode: Mode,
    *,
    key: Key | None = None,
) -> tuple[Float[Array, "b k"], NormState | None]:
    """Returns the logits of the backbone's last map, and the new state of the pooled norm."""
    pooled = global_average_pool(x.astype(jnp.float32))
    norm_state = state.pooled_norm
    if classifier.pooled_norm is not None and params.pooled_norm is not None:
        own = (params.pooled_norm, norm_state)
        pooled, norm_state = apply_norm(classifier.pooled_norm, *own, pooled, mode)
    if classifier.dropout and mode.stochastic:
        if key is None:
            raise ValueError("classifier: dropout is above 0 and the mode stochastic; give a key")
        kept = jax.random.bernoulli(named_key(key, "dropout"), 1 - classifier.dropout, pooled.shape)
        pooled = jnp.where(kept, pooled / (1 - classifier.dropout), 0)
    return pooled @ params.dense.kernel + params.dense.bias, norm_state
