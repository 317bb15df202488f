"""Training over 2, 4 and 8 devices equals training on one, and communicates no feature maps.

This file is also the script that runs on 8 devices, because JAX fixes their number at its start.
"""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from fpnlab.nn.detector import Anchors, Detector
from fpnlab.nn.fpn import Fpn
from fpnlab.nn.norm_specs import BatchNorm, LayerNorm
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.nn.retina_head import RetinaHead
from fpnlab.tasks.kinds import task_of
from fpnlab.train.objective import Objective
from fpnlab.train.parallel import AXIS, data_mesh, jit_step, one_copy, replicate, shard
from fpnlab.train.step import Train, init_train, train_step
from fpnlab.types import Batch

IMAGES, SIZE, STEPS = 16, 32, 2
NORMS = {
    "pairs": BatchNorm(norm_batch=2),
    "eights": BatchNorm(norm_batch=8),
    "whole": BatchNorm(),
    "layer": LayerNorm(axes="hwc"),
    "microbatches": BatchNorm(norm_batch=2),
}
FEW = [("pairs", 8), ("eights", 4)]
"""Norms and devices: groups within a device, and of two devices."""
WHOLE = [("whole", 2), ("whole", 4), ("whole", 8)]
MANY = [("pairs", 2), ("pairs", 4), ("eights", 8), *WHOLE, ("layer", 8)]
MICROBATCHES = ("microbatches", 4)
"""A batch in two microbatches, each over all devices."""
ONE_MAP = (SIZE // 2) ** 2 * 4
"""Values of one image's largest map."""
TRAIN = Train(examples=64, batch_size=IMAGES, learning_rate=0.1, reference_batch=IMAGES)


def detector(norm):
    stem = Stem(size=3, stride=2, pool=True)
    return Detector(
        classes=3,
        backbone=ResNet(depths=(1,), widths=(4,), stem=stem, norm=norm),
        neck=Fpn(channels=4, min_level=2, max_level=3, norm=norm),
        head=RetinaHead(depth=1, norm=norm),
        anchors=Anchors(scale=2.0, octaves=2, ratios=(1.0,)),
    )


def batch():
    """Images that differ in brightness and content, so that statistics groups differ."""
    random = np.random.default_rng(0)
    images = random.uniform(0, 120, (IMAGES, SIZE, SIZE, 3)) + 8 * np.arange(IMAGES).reshape(
        -1, 1, 1, 1
    )
    corners = random.uniform(0, 16, (IMAGES, 2, 2))
    return Batch(
        images=images.astype(np.uint8),
        boxes=np.concatenate([corners, corners + 12], -1).astype(np.float32),
        classes=random.integers(0, 3, (IMAGES, 2)).astype(np.int32),
        valid=random.uniform(size=(IMAGES, 2)) < 0.7,
        extent=np.full((IMAGES, 2), SIZE, np.float32),
        index=np.arange(IMAGES, dtype=np.int32),
    )


def trained(name, devices):
    """Loss, parameters and statistics after the steps, and the text of the compiled step."""
    mesh = None if devices == 1 else Mesh(np.array(jax.devices()[:devices]), (AXIS,))
    model, micro_batch = detector(NORMS[name]), IMAGES // 2 if name == "microbatches" else None
    train = dataclasses.replace(TRAIN, micro_batch=micro_batch)
    step = jit_step(
        functools.partial(
            train_step, task_of(model, Objective(), norm_batch=train.statistics_group), train
        ),
        mesh,
    )
    state, images = init_train(jax.random.key(0), task_of(model, Objective()), train), batch()
    state, images = replicate(mesh, state), shard(mesh, images)
    compiled = step.lower(state, images).compile()
    for _ in range(STEPS):
        state, logs = compiled(state, images)
    assert len(logs["loss"].sharding.device_set) == devices
    logs, state = jax.device_get(one_copy((logs, state)))
    return {"loss": logs["loss"], "params": state.params, "state": state.state}, compiled.as_text()


def distance(a, b):
    """The largest difference of two trees, relative to the largest value or 1, by their parts."""
    far = lambda x, y: float(np.abs(x - y).max() / max(np.abs(x).max(), 1)) if x.size else 0.0
    far = jax.tree.map(far, a, b)
    return {part: max(jax.tree.leaves(tree), default=0.0) for part, tree in far.items()}


def communicated(text):
    """Values of the largest result of each kind of collective in a compiled program."""
    found = {}
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    for shapes, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text):
        sizes = [
            int(np.prod([int(n) for n in dims.split(",") if n]))
            for dims in re.findall(r"\[([\d,]*)\]", shapes)
        ]
        found[kind] = max(found.get(kind, 0), *sizes)
    return found


def main(cases):
    """Prints the report that the tests read, as JSON."""
    assert jax.device_count() == 8
    one = {name: trained(name, 1)[0] for name in sorted({"pairs", "whole", *dict(cases)})}
    report = {
        "devices": {n: data_mesh(n).size if data_mesh(n) else 1 for n in (1, 2, 3, 4, 6, 8, 12, 64)}
    }
    report["order"] = [device.id for device in data_mesh(8).devices]
    report["apart"] = distance(one["pairs"], one["whole"])
    for name, devices in cases:
        after, text = trained(name, devices)
        report[f"{name} {devices}"] = {
            "far": distance(one[name], after),
            "communicated": communicated(text),
        }
    print(json.dumps(report))


@functools.cache
def report(slow):
    """Report of the script, which runs once for few cases and once for many."""
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
    # Nearly all the time is compilation.
    flags += ["--xla_backend_optimization_level=0"]
    variables = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flags),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    ran = subprocess.run(
        [sys.executable, __file__, *(["slow"] if slow else [])],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


cases = pytest.mark.parametrize(
    ("name", "devices", "slow"),
    [
        *((*case, False) for case in FEW),
        *(pytest.param(*case, True, marks=pytest.mark.slow) for case in MANY),
    ],
)


@cases
def test_sharded_training_equals_training_on_one_device(name, devices, slow):
    for part, far in report(slow)[f"{name} {devices}"]["far"].items():
        assert far < 1e-5, part


@pytest.mark.slow
def test_sharded_microbatches_equal_those_on_one_device():
    for part, far in report(True)["{} {}".format(*MICROBATCHES)]["far"].items():
        assert far < 1e-5, part


def test_the_statistics_group_changes_loss_parameters_and_statistics():
    assert min(report(False)["apart"].values()) > 1e-3


@cases
def test_devices_communicate_gradients_and_moments_but_no_maps(name, devices, slow):
    found = report(slow)[f"{name} {devices}"]["communicated"]
    # Devices of one group get its shift, a mean over a sixteenth of its rows, from one of them.
    shift = {"collective-permute"} if name in ("eights", "whole") else set()
    assert {"all-reduce"} <= set(found) <= {"all-reduce"} | shift
    assert max(found.values()) < ONE_MAP


def test_data_mesh_uses_the_largest_number_of_devices_that_divides_the_batch():
    expected = {"1": 1, "2": 2, "3": 3, "4": 4, "6": 6, "8": 8, "12": 6, "64": 8}
    assert report(False)["devices"] == expected
    assert report(False)["order"] == list(range(8))


def test_data_mesh_is_none_on_one_device():
    assert jax.local_device_count() == 1
    assert data_mesh(8) is None


def test_data_mesh_rejects_a_batch_that_does_not_split_over_the_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match=r"6, which does not split over 4 .*does over 1, 2, 3$"):
        data_mesh(6)


if __name__ == "__main__":
    main([*MANY, MICROBATCHES] if "slow" in sys.argv else FEW)
