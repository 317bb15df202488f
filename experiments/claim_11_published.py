"""Claim 11: lesions and paths of published ResNets, trained on CIFAR-10 (arXiv:1605.06431)."""

import os
import pathlib
import tarfile

import draw_claim_11
import jax
import numpy as np

from fpnlab import BatchNorm, Classifier, cifar_resnet
from fpnlab import diagnostics as tools
from fpnlab.data.image_io import decode_rgb
from fpnlab.weights import import_weights, read_weights

DATA = pathlib.Path(os.environ.get("FPNLAB_DATA", "../shared/data"))
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def images(split, count):
    """Returns random images of a split in the archive, and their classes."""
    with tarfile.open(DATA / "cifar10-images.tar.xz") as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}
    names = sorted(name for name in files if name.startswith(f"{split}/"))
    classes = sorted({name.split("/")[1] for name in names})
    chosen = [names[i] for i in np.random.default_rng(0).permutation(len(names))[:count]]
    labels = [classes.index(name.split("/")[1]) for name in chosen]
    return np.stack([decode_rgb(files[name]) for name in chosen]), np.array(labels)


def lesions(spec):
    """Returns the lesions by kind, each by the number of changes and its block or draw."""
    random = lambda draw: {
        (k, i): lesion
        for k in range(1, len(spec.layout.blocks) // 2 + 1)
        for i, lesion in enumerate(draw(jax.random.key(k), spec, k, 4))
    }
    single = {(1, i): lesion for i, lesion in tools.single_deletions(spec).items()}
    deleted, swapped = random(tools.random_deletions), random(tools.random_swaps)
    single |= {(0, -1): tools.delete_blocks(spec, [])}
    return {"single": single, "precise": single, "deleted": deleted, "swapped": swapped}


(x, y), (population, _), damaged, paths = images("test", 2000), images("train", 500), [], []
for depth in (20, 56):
    backbone = cifar_resnet(depth, norm=BatchNorm())
    spec = Classifier(classes=10, backbone=backbone, pixel_mean=MEAN, pixel_deviation=DEVIATION)
    (file,) = (DATA / "cifar_resnets").glob(f"resnet{depth}-*.th")
    network = (spec, *import_weights(spec, read_weights(file)))
    for kind, cases in lesions(spec.backbone).items():
        n, new = (2000 if kind == "single" else 500), (population if kind == "precise" else None)
        found = tools.measure_lesions(*network, [*cases.values()], x[:n], y[:n], population=new)
        damaged += [(depth, kind, *at, n, e, l) for at, e, l in zip(cases, *found)]
    sampled = tools.sample_path_gradients(jax.random.key(0), *network, x[:16], y[:16], samples=30)
    exact = tools.gradients_by_length(*network, x[:16], y[:16])
    norms = np.linalg.norm(exact.reshape(*exact.shape[:2], -1), axis=2).mean(1)
    columns = (sampled.norms.mean(1), sampled.paths, sampled.contributions, norms)
    paths += [(depth, k, *row) for k, row in enumerate(zip(*columns))]
    draw_claim_11.write(damaged, paths)
draw_claim_11.draw()
