"""The initial weights of a model from a file, with a note on what was taken from it."""

import dataclasses
import hashlib
import logging
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from fpnlab.errors import WeightsError
from fpnlab.nn.backbone import Backbone, BackboneParams, BackboneState, trained
from fpnlab.nn.classifier import Classifier
from fpnlab.nn.convnext import ConvNeXt
from fpnlab.nn.detector import Detector
from fpnlab.nn.pretrained import Pretrained
from fpnlab.records.json_files import JsonObject
from fpnlab.weights.torch_names import DENSE_NAMES, HEADS
from fpnlab.weights.torch_weights import import_weights
from fpnlab.weights.weight_file import read_weights


def pretrained_state(
    model: Classifier | Detector, params: PyTree, state: PyTree
) -> tuple[PyTree, PyTree, JsonObject]:
    """Returns parameters and state with the weights of ``model.weights``, and a note on them.

    The note has the file, its SHA-256, the number of its arrays that are used, the names of those
    that are not, and what is frozen; it is logged, too.

    Args:
      model: The model, whose ``weights`` are set.
      params: Its initial parameters, of which those without a weight in the file are kept.
      state: Its initial running statistics.

    Raises:
      WeightsError: The file cannot be read, is not the one that was meant, or does not fit.
    """
    assert model.weights is not None
    arrays, digest = _verified(model.weights)
    if isinstance(model, Classifier):
        left_out = [name for name in arrays if name.startswith(DENSE_NAMES)]
        if _classes(arrays, left_out) in (None, model.classes):
            left_out = []
        new_head = jax.random.key(0) if left_out else None
        dense = params.dense
        params, state = import_weights(model, arrays, new_head=new_head)
        params = dataclasses.replace(params, dense=dense) if left_out else params
    else:
        left_out = [name for name in arrays if name.startswith(HEADS)]
        backbone, own = _backbone(model.backbone, params.backbone, state.backbone, arrays)
        params = dataclasses.replace(params, backbone=backbone)
        state = dataclasses.replace(state, backbone=own)
    frozen = sum(not learns for learns in jax.tree.leaves(trained(model.backbone, params.backbone)))
    note: JsonObject = {
        "weights": model.weights.path,
        "sha256": digest,
        "loaded": len(arrays) - len(left_out),
        "left_out": list(left_out),
        "frozen_stages": model.backbone.frozen_stages,
        "frozen_arrays": frozen,
    }
    logging.getLogger(__name__).warning("%s", described(note))
    return params, state, note


def described(note: JsonObject) -> str:
    """Returns the note on the loaded weights as a sentence."""
    text = f"{note['weights']}: {note['loaded']} arrays loaded"
    if isinstance(left_out := note["left_out"], list) and left_out:
        text += f"; left out: {', '.join(map(str, left_out))}"
    if note["frozen_stages"] is not None:
        parts = f"the stem and {note['frozen_stages']} stages"
        text += f"; frozen: {parts} ({note['frozen_arrays']} arrays)"
    return text


def _verified(given: Pretrained) -> tuple[dict[str, np.ndarray], str]:
    """Returns the arrays of a file and its SHA-256."""
    arrays = read_weights(given.path)
    with pathlib.Path(given.path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if given.sha256 not in (None, digest):
        raise WeightsError(
            f"model.weights: {given.path} has the SHA-256 {digest}; expected {given.sha256}; "
            "give the file that was meant, or its own sha256"
        )
    return arrays, digest


def _classes(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> int | None:
    """Returns the number of classes of a dense layer; None if there is none."""
    return next((arrays[name].shape[0] for name in names if arrays[name].ndim > 1), None)


def _backbone(
    spec: Backbone,
    params: BackboneParams,
    state: BackboneState,
    arrays: Mapping[str, np.ndarray],
) -> tuple[BackboneParams, BackboneState]:
    """Returns the weights of a backbone; output norms, which no file has, keep theirs."""
    plain = dataclasses.replace(spec, output_norm=None) if isinstance(spec, ConvNeXt) else spec
    found, own = import_weights(plain, arrays)
    return (
        dataclasses.replace(found, outputs=params.outputs),
        dataclasses.replace(own, outputs=state.outputs),
    )
