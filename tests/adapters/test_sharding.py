"""Every layer of both adapters trains with its batch over four devices as it does on one.

This file is the script as well, because the number of devices is fixed when JAX starts.
"""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fpnlab.adapters import linen
from fpnlab.adapters import nnx as adapter
from fpnlab.nn.block import Block
from fpnlab.nn.detector import Anchors, Detector
from fpnlab.nn.fpn import Fpn
from fpnlab.nn.norm_specs import BatchNorm, GroupNorm
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.nn.retina_head import RetinaHead
from fpnlab.types import Mode

IMAGES = 8
WHOLE, HALF = BatchNorm(), BatchNorm(norm_batch=4)
"""Statistics over all four devices, and over two of them."""
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
TOLERANCE = 5e-6


def layers():
    """Every kind of layer, with inputs."""
    random = np.random.default_rng(0)
    draw = lambda *shape: random.normal(size=(IMAGES, *shape)).astype(np.float32)
    # Images differ in brightness, so that statistics differ between devices.
    brightness = np.arange(IMAGES, dtype=np.float32).reshape(-1, 1, 1, 1)
    images = 60 + 15 * brightness + 20 * draw(16, 16, 3)
    x, maps = draw(4, 4, 4), {2: draw(8, 8, 4), 3: draw(4, 4, 4)}
    backbone = ResNet(depths=(1,), widths=(4,), stem=Stem(size=3, stride=2, pool=True), norm=HALF)
    neck = Fpn(channels=4, min_level=2, max_level=3, norm=WHOLE)
    head = RetinaHead(depth=1, norm=HALF)
    own = dataclasses.replace(head, anchors_per_cell=2, classes=3)
    block = Block(
        kind="basic", inputs=4, width=8, stride=2, norm=HALF, last_norm=WHOLE, shortcut_norm=WHOLE
    )
    anchors = Anchors(scale=2.0, octaves=1, ratios=(1.0,))
    detector = Detector(classes=3, backbone=backbone, neck=neck, head=head, anchors=anchors)
    return {
        "batch norm": (WHOLE, x),
        "ghost batch norm": (HALF, x),
        "group norm": (GroupNorm(), x),
        "block": (block, x),
        "backbone": (backbone, images),
        "neck": (neck, maps),
        "head": (own, maps),
        "detector": (detector, images),
    }


def loss_of(outputs):
    """Returns a scalar that depends differently on every output."""
    leaves = jax.tree.leaves(outputs)
    target = lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape)
    return sum(jnp.square(leaf - target(leaf)).mean() for leaf in leaves)


def linen_step(spec, x):
    """Returns a function of the maps that trains the layer once, from the same start."""
    module = linen.Layer(spec, mode=Mode.TRAIN)
    start = jax.jit(module.init)(jax.random.key(0), x)

    def step(variables, x):
        params, stats = variables["params"], variables.get("batch_stats", {})

        def loss(params):
            given = {"params": params, "batch_stats": stats}
            outputs, new = module.apply(given, x, mutable=["batch_stats"])
            return loss_of(outputs), new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, _ = OPTIMIZER.update(gradient, OPTIMIZER.init(params), params)
        return {"loss": value, "params": optax.apply_updates(params, updates), **new}

    return jax.jit(lambda x: step(start, x))


def nnx_step(spec, x):
    """Returns the same of the NNX module."""
    module = adapter.Layer(spec, x, mode=Mode.TRAIN, rngs=nnx.Rngs(0))
    start = module, nnx.Optimizer(module, OPTIMIZER, wrt=nnx.Param)

    @nnx.jit
    def train(module, optimizer, x):
        value, gradient = nnx.value_and_grad(lambda module: loss_of(module(x)))(module)
        optimizer.update(module, gradient)
        return value

    def step(x):
        module, optimizer = nnx.clone(start)
        value = train(module, optimizer, x)
        params, stats = module.trees()
        return {"loss": value, "params": params, "batch_stats": stats}

    return step


def differences(step, x):
    """Returns the differences of loss, parameters and statistics between four devices and one."""
    one = step(x)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    four = step(sharded)
    assert four["loss"].sharding.device_set == set(jax.devices())
    far = lambda a, b: jnp.abs(a - b).max() / jnp.maximum(jnp.abs(a).max(), 1)
    far = jax.tree.map(lambda a, b: far(np.asarray(a), np.asarray(b)), one, four)
    return {part: max(map(float, jax.tree.leaves(tree)), default=0.0) for part, tree in far.items()}


def main():
    """Prints the differences of every layer in both adapters."""
    assert jax.device_count() == 4
    found = {}
    for name, (spec, x) in layers().items():
        for make in (linen_step, nnx_step):
            found[f"{name}, {make.__name__}"] = differences(make(spec, x), x)
    print(json.dumps(found))


@pytest.mark.slow
def test_every_layer_trains_over_four_devices_as_on_one():
    """Loss, parameters after a step, and running statistics, to 5e-6 of the largest or of 1."""
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=4"]
    # Nearly all the time is compilation.
    flags += ["--xla_backend_optimization_level=0"]
    variables = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flags),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    ran = subprocess.run(
        [sys.executable, __file__],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert len(found) == 2 * len(layers())
    for name, parts in found.items():
        assert {"loss", "params"} <= parts.keys()
        for part, difference in parts.items():
            assert difference <= TOLERANCE, f"{name}: {part}"


if __name__ == "__main__":
    main()
