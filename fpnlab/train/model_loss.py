"""What training needs of a network: how it begins, and how wrong it is on a batch."""

from typing import Any

import jax
from jaxtyping import Array, Float

from fpnlab.nn.classifier import Classifier, apply_classifier, init_classifier
from fpnlab.nn.detector import Detector, apply_detector, detector_anchors, init_detector
from fpnlab.train.objective import CrossEntropy, Objective, classification_loss, detection_loss
from fpnlab.types import Batch, Key, LabelledBatch, Mode, Watch, unwatched

Model = Detector | Classifier


def init_model(key: Key, model: Model) -> tuple[Any, Any]:
    """Returns a network's parameters and state as training starts them."""
    match model:
        case Detector():
            return init_detector(key, model)
        case Classifier():
            return init_classifier(key, model)


def model_loss(
    model: Model,
    objective: Objective | CrossEntropy,
    params: Any,
    state: Any,
    batch: Batch | LabelledBatch,
    mode: Mode,
    *,
    precision: str,
    key: Key,
    watch: Watch = unwatched,
) -> tuple[Float[Array, ""], tuple[dict[str, Float[Array, ""]], Any]]:
    """Returns the loss of a batch, and with it its logs and the new state.

    One of the logs is ``count``: of what the others are means (positive anchors, images).

    Args:
      model: what to compute.
      objective: that of the model's kind.
      params: its parameters.
      state: its running statistics.
      batch: images with boxes for a detector, with labels for a classifier.
      mode: where norms take their statistics from, and so on.
      precision: dtype of the computation.
      key: draws what is random in it.
      watch: called with the name and the output of each layer.
    """
    images = jax.numpy.asarray(batch.images).astype(precision)
    match model, objective, batch:
        case Detector(), Objective(), Batch():
            anchors = detector_anchors(model, *images.shape[1:3])
            output, new = apply_detector(
                model, params, state, images, mode, extent=batch.extent, key=key, watch=watch
            )
            loss, logs = detection_loss(objective, output, anchors, batch)
        case Classifier(), CrossEntropy(), LabelledBatch():
            logits, new = apply_classifier(model, params, state, images, mode, key=key, watch=watch)
            loss, logs = classification_loss(objective, logits, batch)
        case _:
            raise TypeError(
                f"a {type(model).__name__} cannot be trained by {type(objective).__name__} on a "
                f"{type(batch).__name__}; a Detector takes an Objective and a Batch, a Classifier "
                "a CrossEntropy and a LabelledBatch"
            )
    return loss, (logs, new)
