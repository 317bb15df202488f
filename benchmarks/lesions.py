"""All single deletions of ResNet-56: as a tree, network after network, and as one vmapped call.

The three take turns at each batch of images.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import timing

from fpnlab.diagnostics.blockwise import open_gates
from fpnlab.diagnostics.lesions import measure_lesions, single_deletions
from fpnlab.nn.classifier import Classifier, apply_classifier, init_classifier
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.nn.published_networks import cifar_resnet
from fpnlab.types import Mode


@dataclasses.dataclass(frozen=True)
class Row:
    """Times of one way for all images."""

    way: str
    lesions: int
    images: int
    seconds: float
    cpu_seconds: float
    ratio: float  # against network after network
    first_seconds: float  # of the first batch, with compilation


def ways(depth: int, batch: int):
    """Returns three functions of images and labels, and the number of lesions."""
    backbone = cifar_resnet(depth, norm=BatchNorm())
    classifier = Classifier(classes=10, backbone=backbone)
    params, state = init_classifier(jax.random.key(0), classifier)
    lesions = [*single_deletions(backbone).values()]
    count = len(lesions)

    def logits(branch, images):
        gates = dataclasses.replace(open_gates(count), branch=branch)
        return apply_classifier(classifier, params, state, images, Mode.EVAL, gates=gates)[0]

    one, all_at_once = jax.jit(logits), jax.jit(jax.vmap(logits, (0, None)))
    branches = 1 - jnp.eye(count)
    found = {
        "in turn": lambda x, y: [jax.device_get(one(branch, x)) for branch in branches],
        "vmap": lambda x, y: jax.device_get(all_at_once(branches, x)),
        "tree": lambda x, y: measure_lesions(
            classifier, params, state, lesions, x, y, batch_size=batch
        ),
    }
    return found, count


def main():
    parser = timing.arguments(__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--depth", type=int, default=56)
    options = parser.parse_args()
    timing.prepare(options)
    calls, count = ways(options.depth, options.batch)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (options.images, 32, 32, 3)).astype(np.uint8)
    labels = draw.integers(10, size=options.images)
    first, wall, cpu = {}, dict.fromkeys(calls, 0.0), dict.fromkeys(calls, 0.0)
    for start in [None, *range(0, options.images, options.batch)]:
        part = slice(start or 0, (start or 0) + options.batch)
        for name, call in calls.items():
            at, used = time.perf_counter(), time.process_time()
            call(images[part], labels[part])
            if start is None:
                first[name] = time.perf_counter() - at
            else:
                wall[name] += time.perf_counter() - at
                cpu[name] += time.process_time() - used
    rows = [
        Row(
            way=name,
            lesions=count,
            images=options.images,
            seconds=round(wall[name], 1),
            cpu_seconds=round(cpu[name], 1),
            ratio=round(wall[name] / wall["in turn"], 2),
            first_seconds=round(first[name], 1),
        )
        for name in calls
    ]
    timing.report("speed_lesions", rows, options)


if __name__ == "__main__":
    main()
