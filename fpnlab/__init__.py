"""Normalization, residual blocks and feature pyramids as pure functions in JAX.

What to build is a spec; parameters and running statistics go in and come out:

    norm = fpnlab.BatchNorm(norm_batch=8)
    params, state = fpnlab.init_norm(norm, channels=64)
    y, state = fpnlab.apply_norm(norm, params, state, x, fpnlab.Mode.TRAIN)

Every name below is loaded when it is first used: ``import fpnlab`` itself loads nothing else. It
does set the flags without which the installed XLA computes wrong numbers (``fpnlab.compiler``).
"""

import importlib
from typing import Any

from fpnlab.compiler import set_flags

set_flags()

_NAMES = {
    "types": ("Batch", "Detections", "Features", "LabelledBatch", "Mode", "Moments"),
    "ops.anchors": ("level_anchors", "pyramid_anchors"),
    "ops.boxes": ("giou_pairs", "iou"),
    "ops.conv": ("conv",),
    "ops.kernel": ("fold_batch_norm", "scale_standardize_kernel", "standardize_kernel"),
    "ops.random": ("named_key",),
    "ops.losses": ("giou_loss", "sigmoid_focal_loss", "smooth_l1"),
    "ops.match": ("match_max_iou",),
    "ops.moments": ("merge_moments",),
    "ops.nms": ("nms",),
    "ops.norm": (
        "batch_norm_eval",
        "batch_norm_train",
        "batch_renorm_train",
        "dynamic_tanh",
        "filter_response_norm",
        "group_norm",
        "instance_norm",
        "layer_norm",
        "rms_norm",
    ),
    "ops.pooling": ("global_average_pool", "max_pool"),
    "ops.residual": ("drop_path",),
    "ops.resize": ("sample_linear", "upsample_nearest"),
    "nn.norm_specs": (
        "BatchNorm",
        "DynamicTanh",
        "FilterResponseNorm",
        "FrozenBatchNorm",
        "GroupNorm",
        "InstanceNorm",
        "LayerNorm",
        "NoNorm",
        "Renorm",
        "RmsNorm",
    ),
    "nn.norm_layer": ("apply_norm", "init_norm"),
    "nn.norm_edit": ("freeze",),
    "nn.conv_norm": ("ConvNorm", "apply_conv_norm", "init_conv_norm"),
    "nn.layers": ("apply", "init"),
    "tasks.kinds": ("task_of",),
    "nn.block": ("Block", "apply_block", "init_block"),
    "nn.resnet": (
        "ResNet",
        "Stem",
        "apply_resnet",
        "cifar_resnet",
        "init_resnet",
        "resnet",
    ),
    "nn.classifier": ("Classifier", "apply_classifier", "init_classifier"),
    "nn.fpn": ("Fpn", "apply_fpn", "init_fpn"),
    "nn.retina_head": ("RetinaHead", "apply_head", "init_head"),
    "nn.detector": (
        "Anchors",
        "Detector",
        "Postprocess",
        "apply_detector",
        "detect",
        "detector_anchors",
        "init_detector",
    ),
    "train.objective": ("CrossEntropy", "Objective", "classification_loss", "detection_loss"),
    "train.schedule": ("Cosine", "Steps"),
    "train.step": ("AdamW", "Sgd", "Train", "TrainState", "init_train", "train_step"),
    "evaluate.accuracy": ("accuracy_metrics", "evaluate_classifier"),
    "evaluate.coco": ("coco_metrics",),
    "evaluate.bn_statistics": ("population_state",),
}
_HOMES = {name: f"fpnlab.{module}" for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Returns a public name from the module it stands in (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fpnlab' has no attribute {name!r}")
    set_flags()  # Again: a program may have set XLA_FLAGS anew, or started JAX, since the import.
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
