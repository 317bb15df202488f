"""Reading a file of ResNet-101's weights, against PyTorch's reader of weights alone."""

import pathlib
import tempfile

import jax
import numpy as np
import timing
import torch

from fpnlab.nn.classifier import Classifier, init_classifier
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.nn.published_networks import resnet
from fpnlab.weights import export_weights, read_weights, write_safetensors


def state_dict():
    """Returns the arrays of a ResNet-101 with the names of torchvision."""
    spec = Classifier(classes=1000, backbone=resnet(101, BatchNorm()))
    shapes = jax.eval_shape(lambda key: init_classifier(key, spec), jax.random.key(0))
    draw = np.random.default_rng(0)
    fill = lambda leaf: draw.standard_normal(leaf.shape, np.float32)
    return export_weights(spec, *jax.tree.map(fill, shapes))


def main():
    parser = timing.arguments(__doc__)
    options = parser.parse_args()
    timing.prepare(options)
    torch.set_num_threads(options.threads)
    arrays = state_dict()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        new, old, safe = (pathlib.Path(folder) / name for name in ("new.pth", "old.pth", "a.st"))
        torch.save(tensors, new)
        torch.save(tensors, old, _use_new_zipfile_serialization=False)
        write_safetensors(safe, arrays)
        for case, path in (("zip", new), ("old format", old)):
            ways = {
                "fpnlab": lambda path=path: read_weights(path),
                "torch": lambda path=path: torch.load(path, weights_only=True),
            }
            rows += timing.compare(case, ways, seconds=options.seconds)
        ways = {
            "fpnlab": lambda: read_weights(safe),
            "torch, zip": lambda: torch.load(new, weights_only=True),
        }
        rows += timing.compare("safetensors", ways, seconds=options.seconds)
    timing.report("speed_load_weights", rows, options)


if __name__ == "__main__":
    main()
