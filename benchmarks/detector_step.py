"""Training step of the demo's detector at batch 8: JAX, and the same network in PyTorch.

PyTorch's side is given its targets, JAX's side matches anchors with boxes in each step.
"""

import functools

import jax
import numpy as np
import timing
import torch
from scene_batches import batches, demo
from torch.nn import functional as F
from torch_networks import TorchDetector, channels_last, prepared

from fpnlab.nn.detector import detector_anchors
from fpnlab.ops.boxes import encode
from fpnlab.ops.match import match_max_iou
from fpnlab.tasks.kinds import task_of
from fpnlab.train.step import init_train, train_step


def jax_step(experiment, batch):
    """Returns a function that takes one step, and the number of parameters."""
    fixed = functools.partial(
        train_step,
        task_of(experiment.model, experiment.objective, norm_batch=experiment.statistics_group),
        experiment.train,
    )
    step = jax.jit(fixed, donate_argnums=0)
    carry = [
        init_train(
            jax.random.key(0), task_of(experiment.model, experiment.objective), experiment.train
        )
    ]
    size = sum(a.size for a in jax.tree.leaves(carry[0].params))

    def run():
        carry[0], logs = step(carry[0], batch)
        return jax.block_until_ready(logs)

    return run, size


def targets(experiment, batch):
    """Returns one-hot classes, encoded boxes, and which anchors are positive and counted."""
    objective = experiment.objective
    anchors = detector_anchors(experiment.model, *batch.images.shape[1:3])
    match = jax.vmap(
        lambda boxes, valid: match_max_iou(
            anchors,
            boxes,
            valid,
            positive=objective.positive_iou,
            negative=objective.negative_iou,
        )
    )(batch.boxes, batch.valid)
    positive = np.asarray(match.label == 1)
    classes = np.take_along_axis(np.asarray(batch.classes), np.asarray(match.index), 1)
    one_hot = (classes[..., None] == np.arange(experiment.model.classes)) & positive[..., None]
    boxes = np.take_along_axis(np.asarray(batch.boxes), np.asarray(match.index)[..., None], 1)
    boxes = np.where(positive[..., None], boxes, np.asarray(anchors))
    arrays = (one_hot.astype(np.float32), encode(jax.numpy.asarray(boxes), anchors))
    return [torch.tensor(np.asarray(a)) for a in (*arrays, positive, match.label >= 0)]


def torch_step(experiment, batch):
    """Returns the same of PyTorch."""
    model, objective = prepared(TorchDetector(experiment.model)), experiment.objective
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    images = channels_last(np.asarray(batch.images, np.float32))
    one_hot, boxes, positive, counted = targets(experiment, batch)
    alpha, gamma, total = objective.focal_alpha, objective.focal_gamma, positive.sum().clamp(min=1)

    def run():
        optimizer.zero_grad(set_to_none=True)
        logits, deltas = model(images)
        p = logits.sigmoid()
        right = p * one_hot + (1 - p) * (1 - one_hot)
        weight = alpha * one_hot + (1 - alpha) * (1 - one_hot)
        entropy = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
        focal = (weight * (1 - right) ** gamma * entropy)[counted].sum()
        error = F.smooth_l1_loss(
            deltas[positive], boxes[positive], beta=objective.smooth_l1_beta, reduction="sum"
        )
        loss = (focal + objective.box_weight * error) / total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), experiment.train.clip_norm)
        optimizer.step()
        return loss.item()

    return run, sum(p.numel() for p in model.parameters())


def main():
    parser = timing.arguments(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    options = parser.parse_args()
    timing.prepare(options)
    torch.set_num_threads(options.threads)
    rows = []
    for size in options.batch:
        experiment = demo(size)
        batch = jax.tree.map(lambda a: a[0], batches(experiment, 1))
        ours, parameters = jax_step(experiment, batch)
        theirs, torch_parameters = torch_step(experiment, batch)
        assert parameters == torch_parameters
        ways = {"jax": ours, "torch": theirs}
        rows += timing.compare(f"batch {size}", ways, seconds=options.seconds)
    timing.report("speed_detector", rows, options)


if __name__ == "__main__":
    main()
