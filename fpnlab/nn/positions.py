"""Which norm stands where in a network."""

from fpnlab.nn.classifier import Classifier
from fpnlab.nn.detector import Detector
from fpnlab.nn.norm_layer import BatchNorm, Norm
from fpnlab.nn.resnet import ResNet


def norm_positions(model: Classifier | Detector) -> dict[str, Norm]:
    """Returns the norm of each position of a network that has one.

    Positions are ``stem``, ``branch`` (all convolutions of a residual branch but the last),
    ``last``, ``shortcut``; of a detector also ``lateral`` and ``output`` of the pyramid, and
    ``head``.
    """
    found = _of_backbone(model.backbone)
    if isinstance(model, Detector):
        neck = model.neck
        found["lateral"] = neck.lateral_norm or neck.norm
        found["output"] = neck.output_norm or neck.norm
        if model.head.depth:
            found["head"] = model.head.norm
    return found


def norm_batches(model: Classifier | Detector, norm_batch: int) -> dict[str, int | None]:
    """Returns the images in a statistics group at each position; None for other norms.

    Args:
      model: what is trained.
      norm_batch: images in the group of a batch norm that leaves it open.
    """
    return {
        position: (norm.norm_batch or norm_batch) if isinstance(norm, BatchNorm) else None
        for position, norm in norm_positions(model).items()
    }


def _of_backbone(resnet: ResNet) -> dict[str, Norm]:
    found = {
        "stem": resnet.stem_norm or resnet.norm,
        "branch": resnet.norm,
        "last": resnet.last_norm or resnet.norm,
    }
    if resnet.shortcut == "projection":
        found["shortcut"] = resnet.shortcut_norm or resnet.norm
    return found
